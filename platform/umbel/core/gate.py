"""Gates: the conditions on a version's figures that decide whether it is promoted.

accuracy>=0.8, forgetting<=0.1
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from umbel.core.errors import UsageError

_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition."""

    metric: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """NaN passes nothing."""
        return _HOLDS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


@dataclass(frozen=True, slots=True)
class Gate:
    """All clauses must hold."""

    clauses: tuple[Clause, ...]

    def failures(self, values: Mapping[str, float]) -> list[str]:
        """Each clause that does not hold, with the figure; a metric that was not measured holds nothing."""
        return [_failure(clause, values) for clause in self.clauses if not _passed(clause, values)]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(clause.metric for clause in self.clauses))

    def __str__(self) -> str:
        return ", ".join(map(str, self.clauses))


def parse_gate(text: str) -> Gate:
    """Clauses with commas between, each a metric, a sign and a number. Raises UsageError (``invalid_gate``)."""
    clauses = tuple(_clause(part, text) for part in text.split(","))
    for one, other in pairwise(sorted(clauses, key=str)):
        if one == other:
            raise _invalid(text, f"{one} stands there twice")
    return Gate(clauses)


def _clause(part: str, text: str) -> Clause:
    found = _CLAUSE.fullmatch(part)
    if found is None:
        raise _invalid(text, f"{part.strip()!r} is no condition" if part.strip() else "a condition is missing")
    metric, sign, number = found.groups()
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise _invalid(text, f"{number!r} is no number")
    return Clause(metric, sign, bound)


def _invalid(text: str, why: str) -> UsageError:
    return UsageError(
        f"gate {text!r}: {why}.",
        code="invalid_gate",
        param="gate",
        hint="write it as 'accuracy>=0.8, forgetting<=0.1', with >=, <=, > or <",
    )


def _passed(clause: Clause, values: Mapping[str, float]) -> bool:
    return clause.metric in values and clause.holds(values[clause.metric])


def _failure(clause: Clause, values: Mapping[str, float]) -> str:
    if clause.metric not in values:
        return f"{clause.metric} was not measured, wanted {clause.sign} {clause.bound:g}"
    return f"{clause.metric} is {values[clause.metric]:.4g}, wanted {clause.sign} {clause.bound:g}"
