"""One metric's value over a set of rows, never without the score of each row.

The row scores are what two versions are compared by, so they are kept for ever beside the aggregate.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregate = Literal["mean", "root_mean", "ratio", "other"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """``items[i]`` belongs to row i of the data, in its order."""

    metric: str
    value: float
    items: Floats
    aggregate: Aggregate = "mean"
    """How ``value`` comes from ``items``: their mean, the root of their mean, their mean weighted by ``weights``
    ("ratio"), or in another way. Only a mean may be compared by ``umbel.experiments.compare``; the others need
    ``compare_statistic``."""
    weights: Floats | None = None
    """Length of each row's reference, where longer rows count for more."""
    higher_is_better: bool = True
    points: bool = True
    """Whether the metric is a share of 1, and differences are spoken of in points."""

    @property
    def n(self) -> int:
        return int(self.items.size)


def scored_mean(metric: str, items: Floats, *, higher_is_better: bool = True, points: bool = True) -> Scored:
    return Scored(
        metric=metric, value=float(items.mean()), items=items, higher_is_better=higher_is_better, points=points
    )
