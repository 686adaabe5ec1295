"""Where a training starts: a new run, one that waited in the queue, or one that stands at a checkpoint."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.cli.train.how import USUAL, How, split_params
from umbel.cli.train.lease import owner
from umbel.core.errors import NotFound
from umbel.core.folders import folders_in
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import Run
    from umbel.registry.registry import Registry
    from umbel.training import Task
    from umbel.training.sweep.grid import Grid


@dataclass(frozen=True, slots=True)
class Begun:
    """What every process has to know; plain values, so that it can be sent."""

    folder: Path
    """Of the checkpoints; the same for tasks that share their passes."""
    tasks: "Sequence[Task]" = ()
    runs: Sequence[str] = ()
    """Ids in the run log, in the order of the tasks. Empty where the folder's checkpoint has both."""

    @property
    def goes_on(self) -> bool:
        return not self.runs


def begin(
    registry: "Registry",
    settings: Settings,
    tasks: "Sequence[Task] | None",
    run: str | None,
    backbone: str,
    sweep: "Grid | None" = None,
    how: How = USUAL,
) -> Begun:
    """Opens runs for ``tasks`` or a sweep's candidates, or takes up ``run``. Under torchrun, after a death, it goes on
    by itself."""
    from umbel.training.taskfile import task_of

    run = run or _run_before_death(settings)
    if run is not None and was_begun(settings, run):
        folder = folder_of(settings, run)
        return Begun(folder) if folders_in(folder / "checkpoints") else _anew(registry, folder)
    if run is not None:
        tasks, runs = [task_of(split_params(_queued(registry, run).params)[0])], [run]
    else:
        assert tasks is not None
        names = [each.name for each in tasks]
        if sweep is not None:
            tasks = sweep.candidates
            names = [sweep.task.name] * len(tasks)  # one of them is published under it
        runs = [
            registry.runs.start(name=name, params={**each.as_json(), **how.told}, seed=each.seed, owner=owner())
            for name, each in zip(names, tasks, strict=True)
        ]
    _note_for_restarts(settings, runs[0])
    return Begun(_new_folder(settings, runs, backbone, sweep, how), tasks, runs)


def runs_of(begun: Begun) -> Sequence[str]:
    """Every run that shares the folder's passes."""
    if begun.runs:
        return begun.runs
    from umbel.training.checkpoint import newest, read_runs

    return read_runs(newest(begun.folder))


def _anew(registry: "Registry", folder: Path) -> Begun:
    """Runs that were killed before their first checkpoint: what they were asked is in the registry."""
    from umbel.training.taskfile import task_of

    noted = folder / "runs"
    runs = noted.read_text().split() if noted.is_file() else [folder.name]
    params = [split_params(registry.runs.get(run).params)[0] for run in runs]
    given = [{key: value for key, value in each.items() if value is not None} for each in params]
    return Begun(folder, [task_of(each, where="the run") for each in given], runs)


def was_begun(settings: Settings, run: str) -> bool:
    return "/" not in run and (settings.runs / run).is_dir()


def folder_of(settings: Settings, run: str) -> Path:
    folder = settings.runs / run
    if "/" in run or not folder.is_dir():
        raise NotFound(f"there is no run {run!r} in {settings.runs}.", code="run_not_found", hint="umbel runs list")
    return folder.resolve()


def _new_folder(settings: Settings, runs: Sequence[str], backbone: str, sweep: "Grid | None", how: How) -> Path:
    """The runs share their passes and so their checkpoints: one folder, and a link for each further run.

    It is there with all it says or not at all: whoever finds it can go on with the runs.
    """
    folder = settings.runs / runs[0]
    coming = settings.runs / f".{runs[0]}"
    coming.mkdir(parents=True, mode=0o700)
    (coming / "backbone").write_text(backbone)
    (coming / "runs").write_text("\n".join(runs))
    how.write(coming)
    if sweep is not None:
        from umbel.training.sweep.sweeping import note_sweep

        note_sweep(coming, sweep)
    coming.rename(folder)
    for other in runs[1:]:
        (settings.runs / other).symlink_to(runs[0])
    return folder


def _queued(registry: "Registry", run: str) -> "Run":
    """A run that waited for a worker, and now takes its first step. Any other has nothing to go on from."""
    found = registry.runs.get(run)
    if found.status != "queued" and found.lease_owner is None:
        raise NotFound(f"run {run} left no checkpoint.", code="run_not_found", hint="start it anew: umbel train")
    return found


def _restart_note(settings: Settings) -> Path | None:
    """Where torchrun's job notes its run: torchrun starts the same command line again after a death."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    safe = "".join(letter if letter.isalnum() else "-" for letter in job)
    return settings.runs / f".torchrun-{safe}.json"


def _note_for_restarts(settings: Settings, run: str) -> None:
    if (note := _restart_note(settings)) is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"run": run}))


def _run_before_death(settings: Settings) -> str | None:
    """The run that this job began before one of its processes died."""
    note = _restart_note(settings)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or note is None or not note.is_file():
        return None
    noted: dict[str, Any] = json.loads(note.read_text())
    run = str(noted["run"])
    return run if was_begun(settings, run) else None
