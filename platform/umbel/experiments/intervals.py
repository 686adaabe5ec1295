"""Intervals for a paired difference.

Shape letters here:  N rows
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from umbel.experiments.comparison import Interval

Floats = NDArray[np.float64]

FEW = 30
"""Below this many rows, resampling them undercovers and Student's t stands in."""
_CELLS = 2_000_000
"""Numbers held at once while resampling (16 MB)."""


def tango(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval for p_A - p_B of paired right-or-wrong answers (Tango 1998, Statistics in Medicine 17:891).

    ``only_a`` rows are right in A alone, ``only_b`` in B alone. Chosen over Newcombe's square-and-add and
    Agresti-Min's adjusted Wald because it inverts McNemar's own score test, so interval and p-value tell one
    story; it stays inside [-1, 1], and with no discordant row it still has a width (z^2 / (n + z^2)), not zero.
    """
    z = float(stats.norm.isf((1 - confidence) / 2))
    seen = (only_a - only_b) / n
    low = -1.0 if only_b == n else brentq(lambda d: _score(only_a, only_b, n, d) - z, -1.0, seen, xtol=1e-12)
    high = 1.0 if only_a == n else brentq(lambda d: _score(only_a, only_b, n, d) + z, seen, 1.0, xtol=1e-12)
    return Interval(float(low), float(high))


def _score(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Tango's statistic for the hypothesis p_A - p_B = delta; it falls as delta grows."""
    gap = only_a - only_b - n * delta
    if gap == 0:
        return 0.0
    variance = n * (2 * constrained_rate(only_a, only_b, n, delta) + delta * (1 - delta))
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)


def constrained_rate(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Maximum-likelihood rate of "right in B alone" where p_A - p_B is held at ``delta``."""
    b = (2 * n - only_a + only_b) * delta - only_a - only_b
    c = -only_b * delta * (1 - delta)
    return (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)


def mean_interval(d_N: Floats, *, confidence: float, resamples: int, seed: int) -> Interval:
    """For the mean of paired differences that are not all the same: BCa bootstrap, or Student's t for few rows."""
    if d_N.size < FEW:
        half = float(stats.t.isf((1 - confidence) / 2, d_N.size - 1) * d_N.std(ddof=1) / math.sqrt(d_N.size))
        return Interval(float(d_N.mean()) - half, float(d_N.mean()) + half)
    found = stats.bootstrap(
        (d_N,),
        np.mean,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        batch=batch_of(d_N.size),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def batch_of(n: int) -> int:
    """How many resamples of ``n`` rows fit in memory at once."""
    return max(1, _CELLS // n)
