"""Metrics that are not a mean over rows (macro-F1, RMSE, word error rate): compare by resampling whole rows.

A metric is given as a ``Statistic`` over *stacked* rows: rows 0..N-1 are A's answers, rows N..2N-1 are B's answers
to the same items. One function then serves A (indices i), B (indices i + N) and the exchange of the two, item by item.

Shape letters here:  R resamples   N items   K labels   G groups (clusters, or the items themselves)
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from umbel.core.errors import DataError
from umbel.experiments.comparison import Comparison, Interval
from umbel.experiments.intervals import Floats, batch_of
from umbel.experiments.power import POWER

Indices = NDArray[np.intp]
Statistic = Callable[[Indices], Floats]
"""(R, n) indices of stacked rows, repeats allowed -> (R,) values of the metric. Pure and vectorised."""

RESAMPLES = 10_000
_JACKKNIFE = 400
"""Blocks left out in turn for BCa's acceleration: as good as leaving out single rows, and linear in N."""


def compare_statistic(
    n: int,
    statistic: Statistic,
    *,
    clusters: ArrayLike | None = None,
    higher_is_better: bool = True,
    points: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """A against B on ``n`` items: BCa bootstrap of the difference, and a permutation test that swaps A and B.

    ``clusters`` names the document that each item comes from; documents, not items, are then drawn and swapped.
    """
    if n < 1:
        raise DataError("there are no rows to compare.", code="no_rows", hint="give a file with at least one row")
    groups = _groups(n, clusters)
    everything = np.arange(n, dtype=np.intp)[None, :]
    mean_a, mean_b = float(statistic(everything)[0]), float(statistic(everything + n)[0])
    draws, swaps = np.random.default_rng(seed).spawn(2)

    def difference(items: Indices) -> Floats:
        return statistic(items) - statistic(items + n)

    drawn = np.concatenate([difference(items) for items in _draws(groups, resamples, draws)])
    spread = float(drawn.std(ddof=1))
    seen = mean_a - mean_b
    return Comparison(
        n=n,
        discordant=n,
        mean_a=mean_a,
        mean_b=mean_b,
        difference=seen,
        interval=_bca(seen, drawn, _jackknife(groups, difference), confidence) if spread > _grain(seen) else None,
        p_value=_swap_p(seen, n, groups, statistic, resamples, swaps),
        effect=None,
        effect_name="none",
        minimum_detectable=_reach(confidence) * spread if spread > _grain(seen) else None,
        rows_needed=_rows_needed(seen, spread, n, confidence),
        confidence=confidence,
        higher_is_better=higher_is_better,
        points=points,
        method=f"paired permutation test, BCa bootstrap over {'items' if clusters is None else 'clusters'}",
    )


def macro_f1(gold: Sequence[object], a: Sequence[object], b: Sequence[object]) -> Statistic:
    """Macro-F1 as a ``Statistic``; labels absent from a resample, as gold and as answer, are left out of its mean."""
    _, codes = np.unique(np.array([*map(str, gold), *map(str, a), *map(str, b)]), return_inverse=True)
    n, k = len(gold), int(codes.max()) + 1
    if len(a) != n or len(b) != n:
        raise DataError(f"{n} gold labels but {len(a)} and {len(b)} answers.", code="unpaired_scores")
    cells = np.concatenate([codes[:n] * k + codes[n : 2 * n], codes[:n] * k + codes[2 * n :]])

    def statistic(items: Indices) -> Floats:
        shifted = cells[items] + (np.arange(len(items)) * k * k)[:, None]
        confusion = np.bincount(shifted.ravel(), minlength=len(items) * k * k).reshape(-1, k, k)
        return _macro_f1(confusion)

    return statistic


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
    """Sum over sum, such as edits over words. Both arguments hold 2N stacked rows: A's, then B's."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return lambda items: top[items].sum(axis=1) / bottom[items].sum(axis=1)


def root_mean(squares: ArrayLike) -> Statistic:
    """Root of the mean of 2N stacked squared errors: RMSE."""
    errors = np.asarray(squares, dtype=np.float64)
    return lambda items: np.sqrt(errors[items].mean(axis=1))


def _macro_f1(confusion_RKK: NDArray[np.intp]) -> Floats:
    hits = np.diagonal(confusion_RKK, axis1=1, axis2=2)
    either = confusion_RKK.sum(axis=1) + confusion_RKK.sum(axis=2)
    f1 = np.divide(2.0 * hits, either, out=np.zeros(hits.shape), where=either > 0)
    return np.asarray(f1.sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1), dtype=np.float64)


def _groups(n: int, clusters: ArrayLike | None) -> list[Indices]:
    if clusters is None:
        return [np.array([i], dtype=np.intp) for i in range(n)]
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    if which.size != n:
        raise DataError(f"{n} items but {which.size} cluster names.", code="unpaired_scores")
    return [np.flatnonzero(which == g) for g in range(len(names))]


def _draws(groups: list[Indices], resamples: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Batches of (R, n) items drawn with replacement, group by group."""
    n = sum(map(len, groups))
    if len(groups) == n:
        step = batch_of(n)
        for start in range(0, resamples, step):
            yield rng.integers(0, n, (min(step, resamples - start), n), dtype=np.intp)
        return
    for _ in range(resamples):  # clusters differ in size, so resamples differ in length
        yield np.concatenate([groups[g] for g in rng.integers(0, len(groups), len(groups))])[None, :]


def _jackknife(groups: list[Indices], difference: Callable[[Indices], Floats]) -> Floats:
    blocks = min(len(groups), _JACKKNIFE)
    parts = [np.concatenate(groups[k::blocks]) for k in range(blocks)]  # strided: no block empties a sorted label
    everything = np.concatenate(groups)
    left = [np.setdiff1d(everything, part, assume_unique=True)[None, :] for part in parts]
    return np.concatenate([difference(items) for items in left if items.size])


def _bca(seen: float, drawn_R: Floats, left_out_G: Floats, confidence: float) -> Interval:
    """Efron's bias-corrected and accelerated percentiles (Efron and Tibshirani 1993, chapter 14)."""
    below = ((drawn_R < seen).sum() + 0.5 * (drawn_R == seen).sum()) / drawn_R.size
    bias = float(stats.norm.ppf(np.clip(below, 1 / drawn_R.size, 1 - 1 / drawn_R.size)))
    pull = left_out_G.mean() - left_out_G
    norm = float((pull**2).sum()) ** 1.5
    acceleration = float((pull**3).sum()) / (6 * norm) if norm > 0 else 0.0
    ends = [float(stats.norm.isf(tail)) for tail in ((1 + confidence) / 2, (1 - confidence) / 2)]
    levels = [float(stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))) for z in ends]
    return Interval(*(float(np.quantile(drawn_R, level)) for level in levels))


def _swap_p(
    seen: float, n: int, groups: list[Indices], statistic: Statistic, resamples: int, rng: np.random.Generator
) -> float:
    """How often a difference this large arises when, for each group, a coin decides which answers count as A's."""
    group_of = np.empty(n, dtype=np.intp)
    for g, items in enumerate(groups):
        group_of[items] = g
    items, step, as_large = np.arange(n, dtype=np.intp), batch_of(n), 0
    for start in range(0, resamples, step):
        coins = rng.integers(0, 2, (min(step, resamples - start), len(groups)), dtype=np.intp)[:, group_of]
        swapped = statistic(items + n * coins) - statistic(items + n * (1 - coins))
        as_large += int((np.abs(swapped) >= abs(seen) - _grain(seen)).sum())
    return (as_large + 1) / (resamples + 1)  # the arrangement seen is one of them: p is never 0


def _grain(seen: float) -> float:
    return 1e-12 * max(1.0, abs(seen))


def _reach(confidence: float) -> float:
    return float(stats.norm.isf((1 - confidence) / 2) + stats.norm.isf(1 - POWER))


def _rows_needed(seen: float, spread: float, n: int, confidence: float) -> int | None:
    if abs(seen) <= _grain(seen) or spread <= _grain(seen):
        return None
    return int(np.ceil(n * (_reach(confidence) * spread / seen) ** 2))
