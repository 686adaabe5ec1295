"""Who is told what training does: a console, a run log, a test. The base is told everything and does nothing."""

from collections.abc import Sequence
from pathlib import Path

from umbel.core.protocols import RunLog
from umbel.training.plan import FitPlan
from umbel.training.trainee import Trainee, Validation
from umbel.training.window import Stepped


class Observer:
    """Override what you want to hear."""

    def planned(self, plan: FitPlan) -> None:
        """Before the first step."""

    def stepped(self, trainee: Trainee, done: Stepped) -> None: ...

    def validated(self, trainee: Trainee, found: Validation) -> None: ...

    def failed(self, trainee: Trainee) -> None:
        """It left; the others go on."""

    def saved(self, folder: Path) -> None: ...

    def finished(self, trainee: Trainee) -> None: ...


class Observers(Observer):
    """Several in one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.all = list(observers)

    def planned(self, plan: FitPlan) -> None:
        for each in self.all:
            each.planned(plan)

    def stepped(self, trainee: Trainee, done: Stepped) -> None:
        for each in self.all:
            each.stepped(trainee, done)

    def validated(self, trainee: Trainee, found: Validation) -> None:
        for each in self.all:
            each.validated(trainee, found)

    def failed(self, trainee: Trainee) -> None:
        for each in self.all:
            each.failed(trainee)

    def saved(self, folder: Path) -> None:
        for each in self.all:
            each.saved(folder)

    def finished(self, trainee: Trainee) -> None:
        for each in self.all:
            each.finished(trainee)


class LogObserver(Observer):
    """Writes into a run log: a point per step and validation, an event per turn of fate."""

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def stepped(self, trainee: Trainee, done: Stepped) -> None:
        values = {"loss": done.loss, "grad_norm": done.norm, "lr": done.lr, "tokens": float(trainee.tokens)}
        self.log.metrics(trainee.run, trainee.step, values)

    def validated(self, trainee: Trainee, found: Validation) -> None:
        values = {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
        self.log.metrics(trainee.run, found.step, values)

    def failed(self, trainee: Trainee) -> None:
        self.log.finish(trainee.run, status="failed", error=str(trainee.error))

    def finished(self, trainee: Trainee) -> None:
        best = trainee.best_validation
        summary = {"steps": trainee.step, "tokens": trainee.tokens, "end": str(trainee.status)}
        summary |= {"lr": trainee.schedule.peak}  # by rule, where the task does not say
        if best is not None:
            summary |= {"best_step": best.step, "validation_loss": best.loss, "validation_accuracy": best.accuracy}
        self.log.finish(trainee.run, status="succeeded", summary=summary)
