"""`make bench-training`: how fast umbel trains, beside Hugging Face + PEFT and beside itself without what it does.

Writes docs/benchmarks/training.md and training.json. ``--short`` takes fewer rounds, in about twenty minutes on two
cores; ``--tiny`` tries every part on a toy backbone and writes nothing.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median, stdev
from typing import Any

from benchmarks.run import BACKBONE, OUT, facts
from benchmarks.training_found import Clock, Found, Size
from benchmarks.training_plan import LABELS_OF, duration, memory
from benchmarks.training_systems import LORA, HuggingFace, Umbel, classifier, mixed_lengths, rows_of

from umbel.backbone.backbone import Backbone
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.settings import Settings
from umbel.training import Task, TrainedAdapter, fit
from umbel.training.sweep.grid import grid_of
from umbel.training.sweep.sweeping import sweep

ADAPTERS = 8
TOGETHER = (2, 4, 8, 16)
"""Tokens of a row: 16 rows of them are 32 to 256 tokens in one pass."""


def against_peft(backbone: Backbone, size: Size) -> Found:
    """Tokens per second, LoRA rank 8 on all linears, classification, batch 16; one step each in turn, same rows."""
    rows = rows_of(mixed_lengths(16 * (size.rounds + 1)), backbone.shape.vocab)
    ours = Umbel(backbone, [classifier(backbone, rows, steps=size.rounds + 1, options=LORA)])
    theirs = HuggingFace.load(backbone)
    times: list[tuple[int, float, float]] = []
    for _ in range(size.rounds + 1):
        batch = ours.trainees[0].next_rows()
        times.append((sum(len(row.ids) for row in batch), theirs.step(batch), ours.step()))
    tokens, slow, fast = (sum(column) for column in zip(*times[1:], strict=True))
    detail = f"{tokens / fast:,.0f} and {tokens / slow:,.0f} tokens/s"
    return Found("tokens/s against HF + PEFT, LoRA r8, batch 16", slow / fast, 1.5, 2.5, detail=detail)


def together(backbone: Backbone, size: Size) -> list[Found]:
    """8 adapters at micro-batch 2 in shared passes, against one after the other; and where the gain ends."""
    return [_together(backbone, size, length) for length in TOGETHER]


def _together(backbone: Backbone, size: Size, length: int) -> Found:
    steps = 2 * (size.rounds + 1)
    rows = rows_of([length] * 2 * steps, backbone.shape.vocab)
    both = Umbel(
        backbone,
        [
            classifier(backbone, rows, steps=steps, name=f"a{i}", seed=i, batch_size=2, options=LORA)
            for i in range(ADAPTERS)
        ],
    )
    times = [(both.serial_step(), both.step()) for _ in range(size.rounds + 1)][1:]
    gain = median(serial for serial, _ in times) / median(shared for _, shared in times)
    floor, want = (1.5, 1.9) if length == TOGETHER[0] else (math.nan, math.nan)
    return Found(f"{ADAPTERS} adapters together, {2 * ADAPTERS * length} tokens, against serially", gain, floor, want)


def kept_head(backbone: Backbone, size: Size) -> Found:
    found = _kept(backbone, size, method="none")
    return replace(found, what="epochs after the first, head only, with the trunk cache", floor=10, want=50)


def kept_quarter(backbone: Backbone, size: Size) -> Found:
    layers = backbone.shape.layers
    top = tuple(range(layers - max(1, layers // 4), layers))
    found = _kept(backbone, size, method="lora", options={**LORA, "layers": top})
    return replace(found, what=f"the same, LoRA in the top {len(top)} of {layers} layers", floor=1.7, want=2.1)


def _kept(backbone: Backbone, size: Size, **options: Any) -> Found:
    """Epochs with and without kept states in turn, after the first, which fills the cache."""
    rows = rows_of(mixed_lengths(size.rows), backbone.shape.vocab)
    per_epoch = math.ceil(size.rows / 16)
    steps = per_epoch * (size.rounds + 1)
    keeps = Umbel(backbone, [classifier(backbone, rows, steps=steps, **options)], keep=True)
    whole = Umbel(backbone, [classifier(backbone, rows, steps=steps, **options)])

    def epoch(system: Umbel) -> float:
        return sum(system.step() for _ in range(per_epoch))

    times = [(epoch(whole), epoch(keeps)) for _ in range(size.rounds + 1)]
    gain = median(slow for slow, _ in times[1:]) / median(fast for _, fast in times[1:])
    return Found("", gain, 0, 0, detail=f"the first epoch takes {times[0][1] / times[0][0]:.1f} times as long")


def sweeping(backbone: Backbone, size: Size) -> list[Found]:
    """8 learning rates by halving, over one full run at the rule's rate; and how far the winner is from the best of
    all eight trained to their end, in standard deviations of that best one's loss between seeds."""
    task = Task(
        name="bench", data=size.data, task="classify", limit=size.sweep_rows, steps=size.sweep_steps, batch_size=8,
        validation_limit=64, test_limit=1, options=LORA,
    )  # fmt: skip
    grid = grid_of(task, ["auto"], backbone.shape.hidden)
    with tempfile.TemporaryDirectory() as scratch:
        settings = replace(Settings.load(), home=Path(scratch)) if Path(size.data).exists() else Settings.load()
        one, all_of_them = Clock(), Clock()
        fit(backbone, [task], settings=settings, observer=one)
        won = sweep(backbone, grid, settings=settings, observer=all_of_them)
        assert won.sweep is not None
        assert won.best is not None
        table = ", ".join(f"{each.choice['lr']:g}: {each.steps}" for each in won.sweep.tried)
        ratio = Found(
            "sweep of 8 learning rates, time over one full run", all_of_them.seconds / one.seconds, 3, 2,
            less_is_better=True, detail=f"steps of each rate: {table}",
        )  # fmt: skip
        full = fit(backbone, grid.candidates, settings=settings)
        losses = losses_of(full)
        best = grid.candidates[losses.index(min(losses))]
        others = [replace(best, name=f"seed-{seed}", seed=seed) for seed in range(1, 1 + SEEDS)]
        noise = stdev(losses_of(fit(backbone, others, settings=settings)))
    regret = max(0.0, won.best.loss - min(losses)) / noise
    detail = (
        f"validation loss {won.best.loss:.4f}; the full grid's are {min(losses):.4f} to {max(losses):.4f}; "
        f"between {SEEDS} seeds of the best one lie {noise:.4f}"
    )
    what = "its winner's loss beyond the full grid's best, over the deviation between seeds"
    return [ratio, Found(what, regret, 2, 1, "x", True, detail)]


SEEDS = 6


def losses_of(trained: Sequence[TrainedAdapter]) -> list[float]:
    """The best validation loss of each."""
    return [each.best.loss for each in trained if each.best is not None]


PARTS = ("peft", "together", "head", "quarter", "memory", "time", "sweep")
Lines = dict[str, list[str]]
"""Of the table, by part."""


def parts(backbone: Backbone, size: Size) -> dict[str, Callable[[], Found | list[Found]]]:
    calls: list[Callable[[], Found | list[Found]]] = [
        lambda: against_peft(backbone, size),
        lambda: together(backbone, size),
        lambda: kept_head(backbone, size),
        lambda: kept_quarter(backbone, size),
        lambda: memory(size),
        lambda: duration(size),
        lambda: sweeping(backbone, size),
    ]
    return dict(zip(PARTS, calls, strict=True))


def measure(size: Size, only: str | None = None) -> Lines:
    """Every part or one, told as it is found."""
    lines: Lines = {}
    for name, part in parts(load_backbone(size.folder), size).items():
        if only in (None, name):
            began = time.perf_counter()
            some = part()
            lines[name] = [line(each) for each in (some if isinstance(some, list) else [some])]
            print("\n".join(lines[name]))
            print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
    return lines


def line(found: Found) -> str:
    def target(value: float) -> str:
        return "" if math.isnan(value) else f"{value:g} {found.unit}".replace(" x", "x").replace(" %", " %")

    value = f"{found.value:.3g} {found.unit}".replace(" x", "x")
    verdict = "" if math.isnan(found.floor) else found.verdict
    return f"| {found.what} | {value} | {target(found.floor)} | {target(found.want)} | {verdict} | {found.detail} |"


def page(lines: Lines, size: Size) -> str:
    head = [
        "# Training, measured",
        "",
        f"{size.folder.name}; umbel and what it is measured against take turns in one run, {size.rounds} rounds after",
        "one to warm up. Random rows of 8 to 40 tokens, but for the sweep, which trains on tweets-sentiment.",
        "`make bench-training` prints this page again; `ARGS=--short` in about twenty minutes.",
        "",
        "| what | measured | floor | wanted | | detail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    told = ", ".join(f"{key} {value}" for key, value in facts().items())
    return "\n".join([*head, *chain.from_iterable(lines.values()), "", f"Machine: {told}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--only", metavar="NAME", choices=PARTS, help="measure one part, keep the others")
    parser.add_argument("--tiny", action="store_true", help="a toy backbone: tries the parts, measures nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        size = tiny(Path(scratch)) if args.tiny else real(short=args.short)
        lines = measure(size, args.only)
    kept = OUT / "training.json"
    if args.only and kept.is_file():
        lines = json.loads(kept.read_text(encoding="utf-8"))["lines"] | lines
    text = page(lines, size)
    print(text)
    if not args.tiny:
        (OUT / "training.md").write_text(text, encoding="utf-8")
        kept.write_text(json.dumps({"machine": facts(), "lines": lines}, indent=2) + "\n", encoding="utf-8")
    return


def real(*, short: bool) -> Size:
    folder = Settings.load().backbones / BACKBONE
    rounds, rows = (4, 48) if short else (12, 96)
    return Size(folder, rounds, rows, sweep_rows=400, sweep_steps=64, data="tweets-sentiment")


def tiny(scratch: Path) -> Size:
    folder = tiny_backbone(scratch / "tiny", num_hidden_layers=4)
    data = scratch / "rows.jsonl"
    lines = ({"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": LABELS_OF[i % 2]} for i in range(200))
    data.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return Size(folder, rounds=2, rows=32, sweep_rows=160, sweep_steps=32, data=str(data))


if __name__ == "__main__":
    main()
