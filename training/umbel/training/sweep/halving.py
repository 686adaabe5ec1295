"""Who leaves a sweep, and when: successive halving (Jamieson and Talwalkar 2016) on the validation loss.

With N candidates (rounded up to a power of two) the rungs are at 1/(2N), 1/N, ... 1/4 of each one's own steps. At each,
the half with the higher validation loss leaves; the one that remains trains to its end on the schedule it had from
the start. So 8 candidates cost 1.75 full runs and twice as many 0.25 more, and the winner is what it would be alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel.training.trainee import Trainee

_LEAST = 4
"""Steps before the first rung, twice as many before the next: a loss after fewer says nothing."""
RULE = "the half with the higher validation loss leaves at each of {rungs} of the steps"


@dataclass(frozen=True, slots=True)
class Halving:
    """A pure function of the trainees' own records, so that a resumed sweep judges alike."""

    field: int
    """Candidates at the start."""
    choices: tuple[Mapping[str, Any], ...] = ()
    """What each of them is, for the plan."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the steps."""
        levels = math.ceil(math.log2(self.field))
        return tuple(2.0 ** (level - levels - 1) for level in range(levels))

    @property
    def runs(self) -> float:
        """What the sweep costs, in full runs."""
        cost, before = 0.0, 0.0
        for level, rung in enumerate(self.rungs):
            cost, before = cost + (rung - before) * self._left(level), rung
        return cost + (1 - before)

    @property
    def rule(self) -> str:
        return RULE.format(rungs=", ".join(f"1/{1 / rung:.0f}" for rung in self.rungs))

    def due(self, trainee: Trainee) -> bool:
        """Whether it stands at its next rung."""
        level = len(trainee.rungs)
        return trainee.active and level < len(self.rungs) and trainee.step >= self._step(trainee, level)

    def leaving(self, trainees: Sequence[Trainee]) -> list[Trainee]:
        """Those that leave now; a rung is judged when every one that still trains has reached it."""
        gone: list[Trainee] = []
        for level in range(len(self.rungs)):
            there = [each for each in trainees if each.active and each not in gone]
            if any(len(each.rungs) <= level for each in there):
                break
            gone += sorted(there, key=lambda each: each.rungs[level].order)[self._left(level + 1) :]
        return gone

    def field_at(self, trainee: Trainee) -> int:
        """Candidates that take the step at which this one stands."""
        return self._left(sum(trainee.step >= self._step(trainee, level) for level in range(len(self.rungs))))

    def _left(self, level: int) -> int:
        """Candidates that train towards the rung of this level."""
        return math.ceil(self.field / (1 << level))

    def _step(self, trainee: Trainee, level: int) -> int:
        return max(math.ceil(trainee.schedule.steps * self.rungs[level]), _LEAST << level)
