"""Two versions scored on the same rows: is one better?

Row i of ``a`` and row i of ``b`` must be scores of the same item. Rows are taken as independent; where several come
from one document, resample documents instead (``umbel.experiments.bootstrap``, ``clusters=``).
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from umbel.core.errors import DataError
from umbel.experiments import power
from umbel.experiments.comparison import Comparison, Interval
from umbel.experiments.intervals import FEW, Floats, batch_of, mean_interval, tango

MID_P_BELOW = 25
RESAMPLES = 10_000


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    higher_is_better: bool = True,
    points: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """``compare_binary`` where every score is 0 or 1, else ``compare_scores``.

    Where both apply they test the same hypothesis by the same count of signs, so the choice never flips a finding.
    """
    first, second = _scores(a, b)
    if _is_binary(first) and _is_binary(second):
        return compare_binary(first, second, higher_is_better=higher_is_better, confidence=confidence)
    return compare_scores(
        first, second, higher_is_better=higher_is_better, points=points, confidence=confidence, seed=seed
    )


def compare_binary(
    a: ArrayLike, b: ArrayLike, *, higher_is_better: bool = True, confidence: float = 0.95
) -> Comparison:
    """Right-or-wrong scores: McNemar's exact test, Tango's interval of the difference, Wilson's of each rate.

    Below 25 discordant rows the mid-p version, as the plain exact test is then much too shy (Fagerland 2013,
    BMC Medical Research Methodology 13:91).
    """
    first, second = _scores(a, b)
    if not (_is_binary(first) and _is_binary(second)):
        raise DataError("binary scores must be 0 or 1 on every row.", hint="use compare_scores for graded scores")
    n, alpha = first.size, 1 - confidence
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    discordant, difference = only_a + only_b, (only_a - only_b) / n
    return Comparison(
        n=n,
        discordant=discordant,
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=difference,
        interval=tango(only_a, only_b, n, confidence),
        interval_a=_wilson(first, alpha),
        interval_b=_wilson(second, alpha),
        p_value=mcnemar_p(only_a, only_b),
        effect=only_a / discordant - 0.5 if discordant else 0.0,
        effect_name="g",
        minimum_detectable=power.detectable_rate(discordant, n, alpha=alpha),
        rows_needed=power.rows_for_rate(difference, discordant, n, alpha=alpha),
        confidence=confidence,
        higher_is_better=higher_is_better,
        points=True,
        method=f"exact McNemar test{' (mid-p)' if discordant < MID_P_BELOW else ''}, Tango score interval",
    )


def compare_scores(
    a: ArrayLike,
    b: ArrayLike,
    *,
    higher_is_better: bool = True,
    points: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Scores on any scale: sign-flip permutation test and BCa bootstrap of the mean difference, both paired.

    The test is exact where the non-zero differences have at most ``resamples`` sign patterns (13 rows at 10,000).
    """
    first, second = _scores(a, b)
    differences, n, alpha = _differences(first, second), first.size, 1 - confidence
    difference = float(differences.mean())
    deviation = _deviation(differences)
    interval = None
    if deviation > 0:
        interval = mean_interval(differences, confidence=confidence, resamples=resamples, seed=seed)
    if interval is not None and points:  # two shares of 1 differ by at most 1, which Student's t does not know
        interval = Interval(max(interval.low, -1.0), min(interval.high, 1.0))
    return Comparison(
        n=n,
        discordant=int(np.count_nonzero(differences)),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=difference,
        interval=interval,
        p_value=sign_flip_p(differences, resamples=resamples, seed=seed),
        effect=difference / deviation if deviation > 0 else (0.0 if difference == 0 else None),
        effect_name="d_z",
        minimum_detectable=power.detectable_mean(deviation, n, alpha=alpha),
        rows_needed=power.rows_for_mean(difference, deviation, alpha=alpha),
        confidence=confidence,
        higher_is_better=higher_is_better,
        points=points,
        method=f"paired sign-flip permutation test, {'BCa bootstrap' if n >= FEW else 'Student t'} interval",
    )


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test, mid-p below 25 discordant rows; 1 where there is none."""
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    if discordant >= MID_P_BELOW:
        return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
    fewer = min(only_a, only_b)
    p = 2 * stats.binom.cdf(fewer, discordant, 0.5) - stats.binom.pmf(fewer, discordant, 0.5)
    return min(float(p), 1.0)


def sign_flip_p(d_N: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of "each row's difference could as well have had the other sign".

    Zeros are dropped first: flipping them changes nothing, and without them more tests can be exact.
    """
    moved = d_N[d_N != 0]
    if moved.size < 2:
        return 1.0  # a lone difference is as large with either sign
    found = stats.permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=batch_of(moved.size),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _scores(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(
            f"a paired comparison needs one score per row from both, got shapes {first.shape} and {second.shape}.",
            code="unpaired_scores",
            hint="score both versions on the same file, in the same order",
        )
    if first.size == 0:
        raise DataError("there are no rows to compare.", code="no_rows", hint="give a file with at least one row")
    bad = np.flatnonzero(~(np.isfinite(first) & np.isfinite(second)))
    if bad.size:
        raise DataError(
            f"row {bad[0] + 1} has a score that is not a finite number ({bad.size} such rows).",
            code="score_not_finite",
            hint="score a failed answer as the worst value; dropping the row would favour the version that failed",
        )
    return first, second


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _differences(first: Floats, second: Floats) -> Floats:
    """a - b, with what is only rounding set to zero: a score of 0.1 + 0.2 does not differ from one of 0.3."""
    difference = first - second
    grain = 1e-12 * max(float(np.abs(first).max()), float(np.abs(second).max()), 1e-300)
    return np.where(np.abs(difference) <= grain, 0.0, difference)


def _deviation(d_N: Floats) -> float:
    """Sample standard deviation; 0 for one row, and where the rows differ by rounding only."""
    if d_N.size < 2 or math.isclose(float(d_N.min()), float(d_N.max()), rel_tol=1e-9, abs_tol=0.0):
        return 0.0
    return float(d_N.std(ddof=1))


def _wilson(scores: Floats, alpha: float) -> Interval:
    low, high = proportion_confint(int(scores.sum()), scores.size, alpha=alpha, method="wilson")
    return Interval(float(low), float(high))
