"""What a person sees while it trains: one live line in a terminal, a plain line now and then in a log."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from umbel.cli.console import human_bytes, human_seconds, write_line
from umbel.cli.train.plan import plan_lines
from umbel.cli.train.speed import Speed
from umbel.core.held import most_held
from umbel.training.observer import Observer
from umbel.training.plan import FitPlan
from umbel.training.trainee import Trainee, Validation
from umbel.training.window import Stepped

_PLAIN_EVERY = 10.0
"""Seconds between two lines of a log."""
_DUMB = ("dumb", "unknown")
"""Terminals that take no line back: rich draws nothing there."""
_FORWARD = 1 / 3
"""Of a pass with a gradient, what one without takes."""
_SMOOTH = 0.9
"""Weight of the past in the loss that is shown: about the last 1 / (1 - 0.9) steps count."""


class Watch(Observer):
    """Writes to ``out`` (stderr); results are not its business."""

    def __init__(self, out: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out or sys.stderr
        self.live = self.out.isatty() and os.environ.get("TERM", "").lower() not in _DUMB
        self.clock = clock
        self._losses: dict[str, float] = {}
        self._seen: dict[str, Validation] = {}
        self._trainees: dict[str, Trainee] = {}
        self._told = clock()
        self._speed = Speed(self._told)
        self._told_steps = -1
        self._rich: _LiveLine | None = None

    def planned(self, plan: FitPlan) -> None:
        for line in plan_lines(plan):
            self._line(line)
        self._line("")
        self._line("loss is smoothed over some ten steps; val, and what is best, is the loss on the validation rows")
        self._speed.start(self.clock())

    def stepped(self, trainee: Trainee, done: Stepped) -> None:
        name = trainee.task.name
        self._trainees[name] = trainee
        past = self._losses.get(name, done.loss)
        self._losses[name] = _SMOOTH * past + (1 - _SMOOTH) * done.loss
        self._speed.stepped(name, done.tokens, self.clock())
        if self.live or any(each.step < each.schedule.steps for each in self._trainees.values()):
            self._show(force=False)  # a log's last line waits for the last look, however long that takes

    def validated(self, trainee: Trainee, found: Validation) -> None:
        self._seen[trainee.task.name] = found
        self._speed.looked(self.clock())
        best = trainee.best_validation
        mark = ", best loss so far" if best is not None and best.step == found.step else ""
        share = f", accuracy {found.accuracy:.3f}" if found.accuracy else ""
        self._line(f"{trainee.task.name}: validation at step {found.step}: loss {found.loss:.4f}{share}{mark}")

    def failed(self, trainee: Trainee) -> None:
        self._line(f"{trainee.task.name} failed and left: {trainee.error}")

    def finished(self, trainee: Trainee) -> None:
        if not any(each.active for each in self._trainees.values()):
            self.close()
            self.live = False  # the last figures stay on the screen, once
        self._show(force=True)
        self._line(f"{trainee.task.name}: {trainee.status} after {trainee.step} steps")

    def saved(self, folder: Path) -> None:
        """Nothing to see: every minute."""

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._rich is not None:
            self._rich.close()
            self._rich = None

    def _show(self, *, force: bool) -> None:
        now = self.clock()
        if self.live:
            self._rich = self._rich or _LiveLine(self.out)
            self._rich.show(self.line())
        elif self._steps() != self._told_steps and (force or now - self._told >= _PLAIN_EVERY):
            self._told, self._told_steps = now, self._steps()
            self._line(self.line())

    def _steps(self) -> int:
        return sum(trainee.step for trainee in self._trainees.values())

    def line(self) -> str:
        """Steps, losses, learning rate, speed, time left, memory."""
        shown = list(self._trainees.values())
        done = self._steps()
        total = sum(trainee.schedule.steps if trainee.active else trainee.step for trainee in shown)
        rates = {trainee.schedule.at(min(trainee.step, trainee.schedule.steps - 1)) for trainee in shown}
        parts = [
            f"step {done}/{total}",
            *(self._losses_of(trainee) for trainee in shown if trainee.active or len(shown) == 1),
            f"lr {max(rates):.1e}",
            f"{self._speed.tokens:.0f} tok/s",
            f"{human_seconds(self._speed.of_step * (total - done) + sum(map(self._looking, shown)))} left",
            human_bytes(most_held()),
        ]
        return "  ".join(parts)

    def _looking(self, trainee: Trainee) -> float:
        """Seconds of all its looks at the validation rows that come; before the first by what a step takes."""
        if not trainee.active:
            return 0.0
        rows = trainee.prepared.validation.examples
        by_tokens = _FORWARD * sum(row.tokens for row in rows) / max(1e-9, self._speed.tokens)
        of_look = by_tokens if self._speed.of_look is None else self._speed.of_look
        seen = self._seen.get(trainee.task.name)
        now = trainee.due() and (seen is None or seen.step != trainee.step)
        return of_look * (trainee.looks_left + now) if rows else 0.0

    def _losses_of(self, trainee: Trainee) -> str:
        name = trainee.task.name
        seen = self._seen.get(name)
        text = f"loss {self._losses[name]:.3f}" + (f" val {seen.loss:.3f}" if seen else "")
        return text if len(self._trainees) == 1 else f"{name} {text}"

    def _line(self, text: str) -> None:
        if self._rich is not None:
            self._rich.print(text)
        else:
            write_line(self.out, text)


class _LiveLine:
    """One line at the bottom that is written over; others go above it."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=out, highlight=False, markup=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.live.start()

    def show(self, text: str) -> None:
        from rich.text import Text

        self.live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)

    def print(self, text: str) -> None:
        self.console.print(text)

    def close(self) -> None:
        self.live.stop()
