"""``sweep``: one task in, its best configuration out, and a table of all that were tried."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umbel.adapters.adapter import Adapter
from umbel.backbone.backbone import Backbone
from umbel.training.distributed.group import ALONE
from umbel.training.fitting import TrainedAdapter, fit, resume
from umbel.training.sweep.grid import Grid
from umbel.training.sweep.halving import Halving
from umbel.training.task import Task
from umbel.training.taskfile import task_of
from umbel.training.trainee import Status

_FILE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one configuration."""

    choice: Mapping[str, Any]
    status: str
    steps: int
    loss: float | None
    """Lowest validation loss that it was seen with; None where it failed before."""
    accuracy: float | None
    why: str = ""
    """Of a failure."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All configurations, the best first."""

    rule: str
    tried: tuple[Tried, ...]


def sweep(
    backbone: Backbone, grid: Grid, *, parents: Mapping[str, Adapter] | None = None, **how: Any
) -> TrainedAdapter:
    """The winner under the task's own name, with ``sweep`` telling of the others; ``how`` is as of ``fit``.

    Raises ConfigError (``nothing_to_compare``) without validation rows, and the first error where all failed.
    """
    parent = (parents or {}).get(grid.task.name)
    candidates = grid.candidates
    folder = how.get("folder")
    if folder is not None and how.get("group", ALONE).leads and not is_sweep(folder):
        note_sweep(folder, grid)
    named = {each.name: parent for each in candidates if parent is not None}
    halving = Halving(len(candidates), grid.choices)
    return _winner(grid, fit(backbone, candidates, parents=named, halving=halving, **how), halving)


def resume_sweep(backbone: Backbone, folder: Path, **how: Any) -> TrainedAdapter:
    """Goes on with a sweep that was stopped; it ends in the same bytes."""
    grid = read_sweep(folder)
    halving = Halving(len(grid.choices), grid.choices)
    return _winner(grid, resume(backbone, folder, halving=halving, **how), halving)


def is_sweep(folder: Path) -> bool:
    return (folder / _FILE).is_file()


def note_sweep(folder: Path, grid: Grid) -> None:
    """What the checkpoints do not say: the task, and what was chosen for each candidate."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{_FILE}"
    beside.write_text(json.dumps({"task": grid.task.as_json(), "choices": list(grid.choices)}), encoding="utf-8")
    os.replace(beside, folder / _FILE)


def read_sweep(folder: Path) -> Grid:
    noted = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    given = {key: value for key, value in noted["task"].items() if value is not None}
    return Grid(task_of(given, where=str(folder)), tuple(noted["choices"]))


def _winner(grid: Grid, trained: Sequence[TrainedAdapter], halving: Halving) -> TrainedAdapter:
    """Of those that trained to their end, the one with the lowest validation loss; the first of equals."""
    ended = [each for each in trained if each.status in (Status.DONE, Status.STOPPED)]
    losses = [each.best.order for each in ended if each.best is not None]
    best = next(each for each in ended if each.best is not None and each.best.order == min(losses))
    found = [_tried(choice, each) for choice, each in zip(grid.choices, trained, strict=True)]
    first = found[trained.index(best)]
    rest = sorted((each for each in found if each is not first), key=_rank)
    return _renamed(best, grid.task.name, Sweep(halving.rule, (first, *rest)))


def _tried(choice: Mapping[str, Any], trained: TrainedAdapter) -> Tried:
    seen = min([*trained.history, *trained.rungs], key=lambda each: each.order, default=None)
    why = "" if trained.error is None else trained.error.message
    loss, accuracy = (None, None) if seen is None else (seen.loss, seen.accuracy)
    return Tried(choice, trained.status.value, trained.steps, loss, accuracy, why)


def _rank(tried: Tried) -> tuple[bool, int, float]:
    """How far it came, then how good it was."""
    return tried.loss is None, -tried.steps, tried.loss or 0.0


def _renamed(trained: TrainedAdapter, name: str, told: Sweep) -> TrainedAdapter:
    task: Task = replace(trained.task, name=name)
    prepared = None if trained.prepared is None else replace(trained.prepared, task=task)
    plan = None if trained.plan is None else replace(trained.plan, name=name)
    return replace(trained, task=task, prepared=prepared, plan=plan, sweep=told)
