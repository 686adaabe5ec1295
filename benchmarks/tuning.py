"""`make bench-tuning`: full, partial and head-only fine-tuning beside adapters, on the same rows and steps.

For each way: the task's metric, forgetting, trained parameters, peak memory, time and the size of what comes out. Each
cell runs in a process of its own, so that its peak is its own, and is kept in docs/benchmarks/tuning.json at once: a
stopped run goes on where it was. `--seeds 5` adds seeds, `--steps 100` is another budget (move the file away first),
`--page` only writes docs/benchmarks/tuning.md.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.methods import Mean
from benchmarks.run import BACKBONE, OUT, facts

from umbel.core.held import most_held

WAYS: dict[str, dict[str, Any]] = {
    "head": {"train": "head"},
    "mlp-head": {"train": "mlp-head"},
    "layers=last:2": {"train": "layers=last:2"},
    "layers=last:8": {"train": "layers=last:8"},
    "all": {"train": "all"},
    "lora": {"method": "lora"},
    "llama_adapter": {"method": "llama_adapter"},
    "prefix": {"method": "prefix"},
}
DATA = "tweets-sentiment"
FILE = OUT / "tuning.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them, separated by commas")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--cell", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    budget = {"backbone": BACKBONE, "data": DATA, "steps": args.steps, "batch_size": 16, "held_out": args.held_out}
    if args.cell:
        print(json.dumps(cell(args.cell[0], int(args.cell[1]), budget)))
        return
    book = opened(budget)
    if not args.page:
        measure(book, args.ways.split(","), range(args.seeds))
    text = page(book)
    FILE.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def opened(budget: Mapping[str, Any]) -> dict[str, Any]:
    """All cells so far. A file of another budget is refused: its cells would not be comparable."""
    if not FILE.is_file():
        return {"machine": facts(), "budget": dict(budget), "cells": []}
    book: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    if book["budget"] != dict(budget):
        raise SystemExit(f"{FILE} was measured with another budget; move it away to measure again.")
    return book


def measure(book: dict[str, Any], ways: Sequence[str], seeds: Sequence[int]) -> None:
    """Seed by seed, so that a run that is stopped has whole seeds."""
    budget = book["budget"]
    for seed in seeds:
        for way in ways:
            if any((each["way"], each["seed"]) == (way, seed) for each in book["cells"]):
                continue
            words = ["--cell", way, str(seed), "--steps", str(budget["steps"]), "--held-out", str(budget["held_out"])]
            command = [sys.executable, "-m", "benchmarks.tuning", *words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            book["cells"].append(json.loads(done.stdout.splitlines()[-1]))
            FILE.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")
            print(way, seed, book["cells"][-1], flush=True)


def cell(way: str, seed: int, budget: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one way with one seed in this process, and judges it."""
    from umbel.backbone.loading import checkpoint_views, load_backbone
    from umbel.core.settings import Settings
    from umbel.evaluation.forgetting import Probe
    from umbel.training import fit, tune
    from umbel.training.taskfile import task_of

    settings = Settings.load()
    backbone = load_backbone(settings.backbones / BACKBONE)
    more = {key: budget[key] for key in ("data", "steps", "batch_size")}
    options = {"name": "way", "task": "classify", "max_length": 128, "test_limit": budget["held_out"], "seed": seed}
    task = task_of({**options, **more, **WAYS[way]})
    began = time.perf_counter()
    if task.selection.tunes:
        tuned = tune(backbone, task, settings=settings)
        found, served = tuned.trained, tuned.backbone
        trained = sum(checkpoint_views(served.decoder)[name].nbytes for name in tuned.changed)
    else:
        (found,), served, trained = fit(backbone, [task], settings=settings), backbone, 0
    seconds, peak = time.perf_counter() - began, most_held()
    assert found.adapter is not None
    assert found.plan is not None
    forgetting = Probe(served, backbone).of(found.adapter)
    return {
        "way": way,
        "seed": seed,
        "accuracy": judged(served, found),
        "forgetting": forgetting.rise,
        "general": forgetting.on.accuracy - forgetting.off.accuracy,
        "parameters": found.plan.parameters,
        "peak": peak,
        "seconds": seconds,
        "bytes": size(served, found, trained),
    }


def judged(backbone: Any, found: Any) -> float:
    """Share of the held-out rows answered right, through the engine that serves."""
    from umbel.backbone.linears import can_pack
    from umbel.backbone.loading import pack
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.held import holding
    from umbel.evaluation.questions import questions_of
    from umbel.evaluation.scoring import score

    if can_pack(backbone.dtype, backbone.device):
        pack(backbone.decoder)
    prepared, contract = found.prepared, found.adapter.contract
    questions = questions_of(prepared.test, contract.output_head, "accuracy", DATA)
    with holding() as held:
        asker = Asker(backbone, held)
        answers = asker.ask(held.hold(found.adapter), contract, questions)
        asker.close()
    return float(score(questions, answers).main.value)


def size(backbone: Any, found: Any, trained: int) -> int:
    """Bytes to keep: the adapter's files, and ``trained`` of the backbone's tensors."""
    from umbel.adapters.peft_io import export_files

    files = export_files(found.adapter, backbone_name=backbone.name)
    return sum(len(data) for data in files.values()) + trained


def page(book: Mapping[str, Any]) -> str:
    budget = book["budget"]
    lines = [
        "# Full, partial and head-only fine-tuning beside adapters",
        "",
        f"Made by `make bench-tuning` from tuning.json: {budget['backbone']} on {budget['data']}, {budget['steps']}",
        f"steps of {budget['batch_size']} rows, judged on {budget['held_out']} held-out rows; learning rates by rule.",
        "Mean over seeds ± half the 95 % interval (Student's t). Forgetting is the rise of the probe's perplexity;",
        "peak memory is of the whole training process.",
        "",
        "| what is trained | parameters | accuracy | forgetting | peak memory | seconds | kept |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(way, [each for each in book["cells"] if each["way"] == way]) for way in _measured(book)),
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in book["machine"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _measured(book: Mapping[str, Any]) -> list[str]:
    return [way for way in WAYS if any(each["way"] == way for each in book["cells"])]


def _row(way: str, cells: Sequence[Mapping[str, Any]]) -> str:
    def mean(key: str) -> Mean:
        return Mean.of([each[key] for each in cells])

    shown = [
        f"`{way}`",
        f"{cells[0]['parameters']:,}",
        str(mean("accuracy")),
        str(mean("forgetting")),
        f"{mean('peak').value / 1e9:.2f} GB",
        f"{mean('seconds').value:.0f}",
        f"{cells[0]['bytes'] / 1e6:.2f} MB",
    ]
    return "| " + " | ".join(shown) + " |"


if __name__ == "__main__":
    main()
