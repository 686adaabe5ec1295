"""`make bench-methods`: every method on three real datasets, beside the same method trained by HF + PEFT.

Every finished cell is kept in docs/benchmarks/methods.json at once, so a stopped run goes on where it was; the page
docs/benchmarks/methods.md is made from that file. `--page` only makes the page. `--seeds 5` adds seeds.
"""

import argparse
import json
import math
import os
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.methods_work import DATA, METHODS, Budget, Cell, possible
from benchmarks.run import BACKBONE, OUT, facts
from scipy import stats

from umbel.core.contract import OutputHead
from umbel.core.settings import Settings
from umbel.evaluation.baselines import majority_accuracy
from umbel.evaluation.questions import answers
from umbel.training.data.installed import find
from umbel.training.data.rows import read_rows

SYSTEMS = ("umbel", "HF + PEFT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args()
    book = Book.open(OUT / "methods.json")
    if not args.page:
        torch.set_num_threads(1)  # so that CPU seconds are the work's, whatever else the machine does
        measure(book, range(args.seeds), Settings.load())
    text = page(book)
    (OUT / "methods.md").write_text(text, encoding="utf-8")
    print(text)


class Book:
    """All cells so far, one JSON file, written anew after each cell."""

    def __init__(self, path: Path, budget: Budget, machine: dict[str, Any], cells: Iterable[Cell]) -> None:
        self.path, self.budget, self.machine = path, budget, machine
        self.cells = {cell.key: cell for cell in cells}
        self.constants: dict[str, float] = {}
        """Score of always answering the commonest label, by dataset."""

    @classmethod
    def open(cls, path: Path) -> "Book":
        """A file of another budget is refused: its cells would not be comparable."""
        if not path.is_file():
            return cls(path, Budget(), facts(), [])
        raw = json.loads(path.read_text(encoding="utf-8"))
        if Budget(**raw["budget"]) != Budget():
            raise SystemExit(f"{path} was measured with another budget; move it away to measure again.")
        book = cls(path, Budget(), raw["machine"], [Cell(**cell) for cell in raw["cells"]])
        book.constants = raw.get("constants", {})
        return book

    def add(self, cell: Cell) -> None:
        self.cells[cell.key] = cell
        self.save()
        print(f"{cell.data:17} {cell.system:10} {cell.method:14} seed {cell.seed}  {cell.value:.4f}", flush=True)

    def save(self) -> None:
        told = {
            "machine": self.machine,
            "budget": asdict(self.budget),
            "constants": self.constants,
            "cells": [asdict(self.cells[key]) for key in sorted(self.cells)],
        }
        written = self.path.with_suffix(".partial")
        written.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        os.replace(written, self.path)


def measure(book: Book, seeds: Sequence[int], settings: Settings) -> None:
    """Dataset by dataset: umbel's shared run, then HF + PEFT seed by seed, so that a stopped run has whole tables."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    book.constants = {data: commonest(data, book.budget, settings) for data, head in DATA.items() if head == "classify"}
    for data in DATA:
        wanted = [(method, seed) for seed in seeds for method in METHODS if possible(data, method)]
        _measure_umbel(book, data, wanted, settings)
        _measure_peft(book, data, wanted, settings)


def commonest(data: str, budget: Budget, settings: Settings) -> float:
    """Accuracy of always saying the training rows' commonest label: what an adapter must beat to have learnt."""
    found = find(settings, data)
    train, test = (read_rows(found.split(split), OutputHead.CLASSIFY) for split in ("train", "test"))
    gold = [answers(row)[0] for row in test[: budget.held_out]]
    return majority_accuracy(gold, chosen_on=[answers(row)[0] for row in train]).value


def _measure_umbel(book: Book, data: str, wanted: Sequence[tuple[str, int]], settings: Settings) -> None:
    from benchmarks import methods_umbel

    missing = [(method, seed) for method, seed in wanted if (data, "umbel", method, seed) not in book.cells]
    if missing:
        folder = settings.backbones / BACKBONE
        for cell in methods_umbel.cells(folder, data, missing, book.budget, settings):
            book.add(cell)


def _measure_peft(book: Book, data: str, wanted: Sequence[tuple[str, int]], settings: Settings) -> None:
    from benchmarks import methods_peft

    from umbel.backbone.loading import load_backbone

    backbone = load_backbone(settings.backbones / BACKBONE)
    for method, seed in wanted:
        if methods_peft.can(method) and (data, "HF + PEFT", method, seed) not in book.cells:
            book.add(methods_peft.cell(backbone, data, method, seed, book.budget, settings))


@dataclass(frozen=True, slots=True)
class Mean:
    """Over seeds, with the 95 % interval of Student's t; no interval from fewer than two."""

    value: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        if len(values) < 2:
            return cls(values[0], None, len(values))
        spread = statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread, len(values))

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.value:.3f} (one seed)"
        return f"{self.value:.3f} ± {self.half:.3f}"


def page(book: Book) -> str:
    budget = book.budget
    lines = [
        "# Every method, trained on real data",
        "",
        f"Made by `make bench-methods` from methods.json. {BACKBONE}; {budget.steps} steps of",
        f"{budget.batch_size} rows for every method, texts cut at {budget.max_length} tokens: a small budget that",
        "compares methods and systems, no record (the README says what longer training reaches). Judged on",
        f"{budget.held_out} held-out rows ({budget.words} words of pronounce). Mean over seeds ± half the 95 %",
        "interval (Student's t); the difference is paired by seed, and positive where umbel is better. With three",
        "seeds an interval is wide: it says what is not known, too.",
        "",
        "Both systems get the same token ids, rows, order, steps, learning rates, warm-up and clipping, on one thread,",
        "with a bf16 backbone and fp32 adapters. Initial weights are each system's own. umbel trains all methods and",
        "seeds of a dataset together in shared passes, and its time is the whole run's divided by the number of",
        "adapters; HF + PEFT trains one at a time. CPU seconds are of training only, and rough where other work ran on",
        "the machine. PEFT's faults are stepped around, in its favour: its classifiers are pooled at the text's last",
        "token (prompt methods would pool padding), AdaptionPrompt's output head is set to train, and prompts are",
        "generated from without padding. PEFT has no bottleneck adapters; `none` is the output head alone, in plain",
        "transformers.",
    ]
    for data in DATA:
        lines += ["", *_table(book, data)]
    lines += ["", "Machine: " + ", ".join(f"{key} {value}" for key, value in book.machine.items()) + "."]
    return "\n".join(lines) + "\n"


def _table(book: Book, data: str) -> list[str]:
    cells = [cell for cell in book.cells.values() if cell.data == data]
    if not cells:
        return [f"## {data}", "", "Not measured yet."]
    metric = cells[0].metric
    better = "lower" if metric == "phoneme_error_rate" else "higher"
    rows = [_row(method, cells) for method in METHODS if any(cell.method == method for cell in cells)]
    constant = (
        f"Always the commonest label: {book.constants[data]:.3f}; what is below it has learnt nothing of use."
        if data in book.constants
        else ""
    )
    return [
        f"## {data}: {metric}, {better} is better",
        "",
        *([constant, ""] if constant else []),
        "| method | trained parameters | size umbel / PEFT | CPU s umbel / PEFT | umbel | HF + PEFT "
        "| difference | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _row(method: str, cells: Sequence[Cell]) -> str:
    ours, theirs = (_by_seed(cells, system, method) for system in SYSTEMS)
    both = sorted(ours.keys() & theirs.keys())
    sign = -1 if next(iter({**ours, **theirs}.values())).metric == "phoneme_error_rate" else 1
    paired = [sign * (ours[seed].value - theirs[seed].value) for seed in both]
    shown = [
        f"`{method}`",
        f"{next(iter({**theirs, **ours}.values())).parameters:,}",
        _pair(ours, theirs, lambda cell: _size(cell.bytes)),
        _pair(ours, theirs, lambda cell: f"{cell.cpu_seconds:.0f}"),
        _mean(ours),
        _mean(theirs),
        str(Mean.of(paired)) if paired else "",
        f"{len(ours)} / {len(theirs)}",
    ]
    return "| " + " | ".join(shown) + " |"


def _by_seed(cells: Sequence[Cell], system: str, method: str) -> dict[int, Cell]:
    return {cell.seed: cell for cell in cells if cell.system == system and cell.method == method}


def _mean(found: dict[int, Cell]) -> str:
    return str(Mean.of([cell.value for cell in found.values()])) if found else ""


def _pair(ours: dict[int, Cell], theirs: dict[int, Cell], told: Any) -> str:
    return " / ".join(told(next(iter(found.values()))) if found else "none" for found in (ours, theirs))


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


if __name__ == "__main__":
    main()
