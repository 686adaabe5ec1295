"""Sweeps on the command line: what may be asked, how one is begun and gone on with, and the table at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.core.errors import UsageError

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.training import Task, TrainedAdapter
    from umbel.training.sweep.grid import Grid
    from umbel.training.sweep.sweeping import Sweep


def check_sweep(sweep: Sequence[str] | None, *, tasks: int | None, queue: bool) -> None:
    """Raises UsageError where a sweep has not exactly one task to be of."""
    if not sweep:
        return
    if tasks is None:
        raise UsageError("a run that is resumed goes on with the sweep it was begun with.", hint="leave --sweep out")
    if tasks != 1 or queue:
        what = "a queued run is" if queue else f"{tasks} tasks are"
        raise UsageError(f"--sweep is of one task, but {what} asked for.", param="sweep", hint="umbel train TASK.toml")


def read_grid(task: "Task", asked: Sequence[str], backbone: "Backbone") -> "Grid":
    from umbel.training.sweep.grid import grid_of

    if task.selection.tunes:
        raise UsageError(
            f"a sweep trains its adapters together on one frozen backbone, and train = {task.train!r} changes it.",
            param="sweep",
            hint="sweep over adapters, or train one setting after the other",
        )
    return grid_of(task, asked, backbone.shape.hidden)


def begun_grid(folder: Path) -> "Grid | None":
    """What a sweep was begun with, where it was killed before its first checkpoint."""
    from umbel.training.sweep.sweeping import is_sweep, read_sweep

    return read_sweep(folder) if is_sweep(folder) else None


def go_on(backbone: "Backbone", folder: Path, **how: Any) -> "list[TrainedAdapter]":
    """Resumes what the folder holds: tasks that train together, or a sweep."""
    from umbel.training import resume
    from umbel.training.sweep.sweeping import is_sweep, resume_sweep

    return [resume_sweep(backbone, folder, **how)] if is_sweep(folder) else resume(backbone, folder, **how)


def tell_sweep(sweep: "Sweep | None") -> None:
    """The table of all configurations, the winner first."""
    if sweep is None:
        return
    from umbel.cli.console import print_heading, print_table
    from umbel.training.sweep.report import columns, rows

    print_heading(f"Sweep: {sweep.rule}")
    print_table(columns(sweep), rows(sweep), empty="")
