"""Run logs on the way between a training and whoever keeps its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from umbel.core.protocols import RunLog

TRAINED = "trained; to be judged and published"
"""The event of a run that has taken its last step; its data are what the run found."""


class OpenedRuns:
    """A run log whose runs were opened before, in the order of the tasks: their ids name the checkpoints' folder.

    None of them has succeeded with its last step: whoever opened them ends them, once their versions are there.
    """

    def __init__(self, log: RunLog, runs: Sequence[str]) -> None:
        self.log = log
        self._left = list(runs)

    def start(self, *, name: str, params: Mapping[str, Any], seed: int) -> str:
        return self._left.pop(0)

    def metrics(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self.log.metrics(run, step, values)

    def event(self, run: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        self.log.event(run, message, level=level, data=data)

    def cancelled(self, run: str) -> bool:
        return self.log.cancelled(run)

    def finish(
        self, run: str, *, status: str, error: str | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        if status == "succeeded":
            self.log.event(run, TRAINED, data=summary)
        else:
            self.log.finish(run, status=status, error=error, summary=summary)
