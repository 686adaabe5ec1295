"""Intervals and checks that may be looked at as often as one likes.

A fixed-sample 95 % interval is right at one planned look. Looked at a hundred times while data come in, it excludes
the truth in more than a third of all experiments (``tests/experiments/test_peeking.py``). What stands here holds at
all looks at once, and a test may be stopped the moment it shows something.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from umbel.core.errors import ConfigError
from umbel.experiments.comparison import Interval

Floats = NDArray[np.float64]

HORIZON = 5_000
"""Units of all arms at which the sequence is tightest. Fixed from the start: choosing it later is peeking."""
CONCENTRATION = 1_000.0
"""How near the weights a broken split is thought to be; 1,000 finds 48:52 in 10,000 units three times in four."""
MISMATCH_ABOVE = 100.0
"""E-value that means "the split is broken"; a sound one ever gets there with probability below 1 %."""


def boundary(n: ArrayLike, *, alpha: float = 0.05, horizon: float = HORIZON) -> Floats:
    """How many standard errors wide each side of the sequence is after ``n`` units.

        z_n = sqrt( 2 (n rho^2 + 1) / (n rho^2) * ln( sqrt(n rho^2 + 1) / alpha ) )
        rho^2 = (-2 ln alpha + ln(1 - 2 ln alpha)) / horizon

    Asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv 2103.06476). A print
    of this formula with another denominator under rho^2 goes round; it excludes the truth in most experiments.
    """
    spent = np.asarray(n, dtype=np.float64) * _rho2(alpha, horizon)
    return np.asarray(np.sqrt(2 * (spent + 1) / spent * np.log(np.sqrt(spent + 1) / alpha)), dtype=np.float64)


def _rho2(alpha: float, horizon: float) -> float:
    if not 0 < alpha < 1 or horizon <= 0:
        raise ConfigError(f"alpha must lie between 0 and 1 and horizon be positive, got {alpha} and {horizon}.")
    return (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / horizon


def anytime_p(
    estimate: ArrayLike, error: ArrayLike, n: ArrayLike, *, alpha: float = 0.05, horizon: float = HORIZON
) -> Floats:
    """P-value valid at all looks: at most ``alpha`` exactly where ``boundary``'s interval excludes zero.

    ``alpha`` only tunes rho; the p-value may be held against that level alone.
    """
    spent = np.asarray(n, dtype=np.float64) * _rho2(alpha, horizon)
    z2 = np.square(np.asarray(estimate, dtype=np.float64) / np.asarray(error, dtype=np.float64))
    return np.asarray(np.minimum(1.0, np.sqrt(spent + 1) * np.exp(-z2 * spent / (2 * (spent + 1)))), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Sums:
    """All that a sequence needs of one arm's values, one value per unit: average a unit's several outcomes first."""

    n: int
    total: float
    squares: float
    zero_or_one: bool = False
    """Whether every outcome was: then no mean lies beyond, however many outcomes a unit's value is the average of."""

    @classmethod
    def of(cls, values: ArrayLike) -> "Sums":
        array = np.asarray(values, dtype=np.float64)
        return cls(array.size, float(array.sum()), float(np.square(array).sum()), bool(np.isin(array, (0, 1)).all()))

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Sample variance; differences that the subtraction of two large sums cannot tell from zero are zero."""
        if self.n < 2:
            return 0.0
        around = self.squares - self.total**2 / self.n
        return around / (self.n - 1) if around > 1e-12 * self.squares else 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error and an interval that holds at all looks."""

    value: float
    error: float
    interval: Interval
    p_value: float


def mean(values: Sums, *, alpha: float = 0.05, horizon: float = HORIZON) -> Estimate | None:
    """One arm's mean; None where fewer than two units, or units without spread, leave it without a width."""
    if values.variance == 0:
        return None
    found = _estimate(values.mean, math.sqrt(values.variance / values.n), values.n, alpha, horizon)
    return _cut(found, 0.0, 1.0) if values.zero_or_one else found


def difference(arm: Sums, control: Sums, *, alpha: float = 0.05, horizon: float = HORIZON) -> Estimate | None:
    """Mean of ``arm`` minus mean of ``control``; n counts the units of both. None where there is no spread to go by.

    sigma^2 = n (s_arm^2 / n_arm + s_control^2 / n_control): each arm's variance weighted by one over its share.
    """
    if min(arm.n, control.n) < 2:
        return None
    squared = arm.variance / arm.n + control.variance / control.n
    if squared == 0:  # an arm that always fails beside one that never does: judge by the spread of both as one sample
        both = Sums(arm.n + control.n, arm.total + control.total, arm.squares + control.squares)
        squared = both.variance * (1 / arm.n + 1 / control.n)
    if squared == 0:
        return None
    error = math.sqrt(squared)
    found = _estimate(arm.mean - control.mean, error, arm.n + control.n, alpha, horizon)
    return _cut(found, -1.0, 1.0) if arm.zero_or_one and control.zero_or_one else found


def _cut(found: Estimate, lowest: float, highest: float) -> Estimate:
    """To where the truth can be; it covers as often, and excludes zero just where it did."""
    return replace(found, interval=Interval(max(found.interval.low, lowest), min(found.interval.high, highest)))


def _estimate(value: float, error: float, n: int, alpha: float, horizon: float) -> Estimate:
    half = error * float(boundary(n, alpha=alpha, horizon=horizon))
    p = float(anytime_p(value, error, n, alpha=alpha, horizon=horizon))
    return Estimate(value, error, Interval(value - half, value + half), p)


def log_mismatch(counts: ArrayLike, weights: Sequence[float], *, concentration: float = CONCENTRATION) -> Floats:
    """Log e-value against "units fall into arms by ``weights``", over the last axis of ``counts``.

    Dirichlet(concentration * weights)-multinomial against multinomial(weights) (Lindon and Malek 2022, arXiv
    2011.03567). By Ville's inequality it ever passes ln(x) with probability at most 1/x if the split is sound.
    A unit in an arm of weight 0 is proof: infinity.
    """
    n_arms = np.asarray(counts, dtype=np.float64)
    expected = np.asarray(weights, dtype=np.float64)
    if n_arms.shape[-1] != expected.size or (expected < 0).any() or expected.sum() <= 0:
        raise ConfigError(f"{n_arms.shape[-1]} arms need as many weights of at least 0, got {list(weights)}.")
    expected = expected / expected.sum()
    open_arms = expected > 0
    seen, prior = n_arms[..., open_arms], concentration * expected[open_arms]
    log_e = (
        gammaln(concentration)
        - gammaln(concentration + seen.sum(-1))
        + (gammaln(prior + seen) - gammaln(prior) - seen * np.log(expected[open_arms])).sum(-1)
    )
    return np.asarray(np.where(n_arms[..., ~open_arms].sum(-1) > 0, np.inf, log_e), dtype=np.float64)
