"""The loop: windows until nobody trains any more, with validation, checkpoints and a way to stop in between."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from umbel.core.errors import Interrupted
from umbel.training import checkpoint
from umbel.training.observer import Observer
from umbel.training.sweep.halving import Halving
from umbel.training.trainee import Status, Trainee
from umbel.training.window import Machine, look, take_window

SAVE_EVERY = 60.0
"""Seconds between checkpoints: what a crash costs at most, where saving is quick."""
_SAVING = 0.05
"""Most of the time that saving may take: a whole backbone with its optimizer is gigabytes."""


class Loop:
    """``folder`` keeps checkpoints (None keeps none); ``stop`` is asked before every window.

    Of several processes the first alone writes, and all stop where one of them is asked to.
    """

    def __init__(
        self,
        machine: Machine,
        trainees: Sequence[Trainee],
        *,
        observer: Observer,
        folder: Path | None = None,
        stop: Callable[[], str | None] = lambda: None,
        windows: int = 0,
        save_every: float = SAVE_EVERY,
        halving: Halving | None = None,
    ) -> None:
        self.machine, self.trainees = machine, trainees
        self.observer, self.folder, self.stop = observer, folder, stop
        self.windows, self.save_every, self.halving = windows, save_every, halving
        self._saved = time.monotonic()
        self._every = save_every
        self._coming: checkpoint.Coming | None = None
        self._last: Path | None = None

    def run(self) -> None:
        """Raises Interrupted, with all work saved, where somebody asked to stop."""
        while active := [trainee for trainee in self.trainees if trainee.active]:
            if why := self._asked_to_stop():
                self._interrupt(why)
            self._window(active)
            self._look_after_saving()
            if self.folder is not None and self._due():
                self.begin_saving()
        self.save()

    def save(self) -> Path | None:
        """How things stand now; it is there when this returns."""
        self.begin_saving()
        return self._end_saving()

    def begin_saving(self) -> None:
        """Shards are written while training goes on, one checkpoint at a time; all else at once."""
        if self.folder is None:
            return
        self._end_saving()
        began, group = time.monotonic(), self.machine.group
        if group.size == 1:
            self._told(checkpoint.save(self.folder, self.trainees, windows=self.windows))
        else:
            self._coming = checkpoint.begin(self.folder, self.trainees, windows=self.windows, group=group)
        self._saved = time.monotonic()
        self._every = max(self.save_every, (self._saved - began) / _SAVING)

    def _look_after_saving(self) -> None:
        """A checkpoint counts as soon as all processes have written their part of it."""
        group = self.machine.group
        if self._coming is not None and not group.any(not self._coming.done(), self.machine.backbone.device):
            self._end_saving()

    def _end_saving(self) -> Path | None:
        """Waits for a checkpoint that is being written; returns the last one."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._told(coming.finish())
        return self._last

    def _told(self, saved: Path) -> None:
        self._last = saved
        if self.machine.group.leads:
            self.observer.saved(saved)

    def _due(self) -> bool:
        """By the first process's clock: a checkpoint is written together."""
        machine = self.machine
        late = machine.group.leads and time.monotonic() - self._saved > self._every
        return machine.group.any(late, machine.backbone.device)

    def _asked_to_stop(self) -> str | None:
        mine, machine = self.stop(), self.machine
        if not machine.group.any(mine is not None, machine.backbone.device):
            return None
        return mine or "interrupted by another process"

    def _window(self, active: Sequence[Trainee]) -> None:
        done = take_window(self.machine, active)
        self.windows += 1
        for place, stepped in done.items():
            self.observer.stepped(active[place], stepped)
        due = [trainee for trainee in active if trainee.active and trainee.due()]
        self._validate(due)
        if self.halving is not None:
            self._halve(active)
        for trainee in active:
            self._settle(trainee)

    def _validate(self, due: Sequence[Trainee]) -> None:
        if not due:
            return
        for trainee, found in look(self.machine, due):
            trainee.validated(found)
            self.observer.validated(trainee, found)

    def _halve(self, active: Sequence[Trainee]) -> None:
        """Asks the sweep who leaves. A look taken for this alone is none of the trainee's own validations."""
        assert self.halving is not None
        due = [trainee for trainee in active if self.halving.due(trainee)]
        for trainee in due:
            if trainee.history and trainee.history[-1].step == trainee.step:
                trainee.rungs.append(trainee.history[-1])
        for trainee, found in look(self.machine, [each for each in due if self.halving.due(each)]):
            trainee.rungs.append(found)
        for trainee in self.halving.leaving(self.trainees):
            trainee.status = Status.DOMINATED

    def _settle(self, trainee: Trainee) -> None:
        if trainee.status is Status.FAILED:
            self.observer.failed(trainee)
            return
        if trainee.active and trainee.step >= trainee.schedule.steps:
            trainee.status = Status.DONE
        if not trainee.active:
            self.observer.finished(trainee)

    def _interrupt(self, why: str) -> None:
        saved = self.save()
        self.machine.group.wait()  # the first is still writing, and torchrun ends all where one has ended
        at = ", ".join(f"{t.task.name} at step {t.step} of {t.schedule.steps}" for t in self.trainees)
        if saved is None:
            raise Interrupted(f"{why}: {at}; nothing was saved, as no folder was given.")
        raise Interrupted(
            f"{why}: {at}; all of it is saved.", hint=f"go on with: umbel train --resume {saved.parent.parent.name}"
        )
