"""What a row of the table found, and the medians and quantiles that all rows take."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """One row's figure: the median over rounds, with the least and the most of them."""

    value: float
    low: float
    high: float
    detail: str
    """The figures behind it, in one line."""

    @classmethod
    def of(cls, rounds: Sequence[float], detail: str) -> "Found":
        return cls(statistics.median(rounds), min(rounds), max(rounds), detail)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was seen."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of at least two values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
