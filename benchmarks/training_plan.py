"""What a plan says a training will take, against what a process of its own was then seen to take."""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.training_found import Clock, Found, Size
from benchmarks.training_systems import LORA

from umbel.backbone.loading import load_backbone
from umbel.core.anew import compact
from umbel.core.held import most_held
from umbel.core.settings import Settings
from umbel.training import Task, fit, tune
from umbel.training.sweep.grid import grid_of
from umbel.training.sweep.sweeping import sweep


@dataclass(frozen=True, slots=True)
class Work:
    """A training that is planned and then measured."""

    shortest: int
    longest: int
    batch: int
    steps: int = 6
    checkpointing: str = "none"
    dtype: str = "auto"
    """Of the backbone; auto is its checkpoint's, bf16."""
    options: dict[str, Any] = field(default_factory=lambda: {"task": "classify", "options": LORA})
    together: int = 1
    """Adapters that train together."""
    sweep: int = 0
    """Learning rates of a sweep."""
    epoch: int = 40
    """Most steps of one."""


HELD = {
    "LoRA, ragged rows, 40 steps": Work(8, 72, 16, steps=40),
    "LoRA, long rows": Work(200, 200, 8),
    "LoRA, long rows, recomputed": Work(200, 200, 8, checkpointing="full"),
    "LoRA, fp32": Work(20, 60, 16, dtype="fp32"),
    "output head only": Work(20, 60, 16, options={"task": "classify", "method": "none"}),
    "output head only, kept states": Work(20, 60, 16, steps=80, options={"task": "classify", "method": "none"}),
    "8 LoRAs together": Work(8, 40, 4, steps=10, together=8),
    "sweep of 8 rates": Work(8, 40, 8, steps=32, sweep=8),
    "prefix, answers": Work(40, 120, 8, options={"task": "generate", "method": "prefix"}),
    "LLaMA-Adapter, answers": Work(40, 120, 8, options={"task": "generate", "method": "llama_adapter"}),
    "IA3, one row of 1,000": Work(1000, 1000, 1, steps=3, options={"task": "classify", "method": "ia3"}),
    "last 4 layers trained": Work(40, 100, 8, options={"task": "classify", "train": "layers=last:4"}),
    "last 8 layers trained": Work(40, 100, 8, options={"task": "classify", "train": "layers=last:8"}),
    "all of it trained": Work(20, 60, 8, steps=3, options={"task": "generate", "train": "all"}),
    "all of it, in fp32": Work(
        20, 60, 8, steps=3, dtype="fp32", options={"task": "classify", "train": "all", "precision": "fp32"}
    ),
}


TIMED = {
    "LoRA, ragged rows, 250 steps": Work(8, 72, 16, steps=250),
    "LoRA, long answers": Work(60, 200, 8, steps=40, options={"task": "generate", "options": LORA}),
    "prefix, answers": Work(20, 80, 8, steps=60, options={"task": "generate", "method": "prefix"}),
    "8 LoRAs together": Work(8, 40, 4, steps=40, together=8),
    "sweep of 8 rates": Work(8, 40, 8, steps=64, sweep=8),
    "LoRA in the last 8 layers, 3 epochs": Work(
        8, 72, 16, steps=120, options={"task": "classify", "options": {**LORA, "layers": tuple(range(22, 30))}}
    ),
    "output head only, 3 epochs": Work(8, 72, 16, steps=450, epoch=150, options={"task": "classify", "method": "none"}),
    "last 4 layers trained": Work(20, 60, 8, steps=40, options={"task": "classify", "train": "layers=last:4"}),
    "all of it trained": Work(20, 60, 8, steps=20, options={"task": "generate", "train": "all"}),
}


def memory(size: Size) -> list[Found]:
    return [_compared(size, kind, HELD, "memory", "MB", 1e-6) for kind in HELD]


def duration(size: Size) -> list[Found]:
    return [_compared(size, kind, TIMED, "time", "s", 1.0) for kind in TIMED]


def _compared(size: Size, kind: str, works: dict[str, Work], what: str, unit: str, scale: float) -> Found:
    """The plan's estimate against what a process of its own was then seen to take."""
    name = "HELD" if works is HELD else "TIMED"
    command = [sys.executable, "-m", "benchmarks.training_plan", name, kind, str(size.folder)]
    environ = compact(os.environ) or dict(os.environ)  # as umbel train runs
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
    planned, taken = json.loads(ran.stdout.splitlines()[-1])[what]
    error = 100 * abs(planned - taken) / taken
    places = 0 if max(planned, taken) * scale >= 100 else 1
    detail = f"{scale * planned:,.{places}f} {unit} planned, {scale * taken:,.{places}f} {unit} taken"
    return Found(f"{what} estimate's error, {kind}", error, 15, 5, "%", True, detail)


def train(work: Work, folder: Path) -> dict[str, tuple[float, float]]:
    """Trains in this process; of memory and of time, what was planned and what was taken."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in _rows_of_words(work)))
        task = Task(
            name="bench", data=str(data), steps=work.steps, batch_size=work.batch, max_length=1024, **work.options
        )
        clock, settings = Clock(), Settings.load(Path(scratch))
        more: dict[str, Any] = {"settings": settings, "observer": clock, "checkpointing": work.checkpointing}
        backbone = load_backbone(folder, dtype=work.dtype)
        if work.sweep:
            sweep(backbone, grid_of(task, ["auto"], backbone.shape.hidden), settings=settings, observer=clock)
        elif task.selection.tunes:
            tune(backbone, task, **more)
        else:
            fit(backbone, [replace(task, name=f"bench-{i}", seed=i) for i in range(work.together)], **more)
    return {"memory": (clock.plan.memory, most_held()), "time": (clock.plan.seconds, clock.seconds)}


def _rows_of_words(work: Work) -> Iterator[dict[str, str]]:
    """About as many tokens as words."""
    words, lengths = ["some", "more", "of", "these", "plain", "words"], random.Random(0)
    for i in range(work.batch * min(work.epoch, max(8, work.steps))):
        count = lengths.randint(work.shortest, work.longest) - 3
        said = [words[(i + j) % 6] for j in range(count)]
        if work.options["task"] == "generate":
            yield {"prompt": f"{i} " + " ".join(said[::2]), "completion": " " + " ".join(said[1::2])}
        else:
            yield {"text": " ".join(said) + f" {i}", "label": LABELS_OF[i % 2]}


LABELS_OF = ("yes", "no")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", choices=("HELD", "TIMED"))
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(json.dumps(train({"HELD": HELD, "TIMED": TIMED}[args.works][args.kind], args.folder)))


if __name__ == "__main__":
    main()
