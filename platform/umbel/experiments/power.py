"""How small a difference a paired test can see, and how many rows a difference needs.

Right-or-wrong scores: McNemar's test (Miettinen 1968; Connor 1987). With a share psi of discordant rows and a true
difference d,

    d sqrt(n) = z_alpha sqrt(psi) + z_beta sqrt(psi - d^2)

Other scores: d sqrt(n) = (t_alpha + t_beta) * standard deviation of the differences.
"""

import math

from scipy import stats
from scipy.optimize import brentq

POWER = 0.8


def fewest(alpha: float, *, mid_p: bool) -> int:
    """Differing rows below which no result can be significant, even with all of them on one side.

    k such rows have p = 2^-k by McNemar's mid-p, and 2^(1-k) by the sign-flip test.
    """
    return math.floor(-math.log2(alpha)) + (1 if mid_p else 2)


def detectable_rate(discordant: int, n: int, *, alpha: float) -> float | None:
    """Smallest difference of two rates that ``n`` rows show with 80 % power; None where no difference is.

    A difference d needs at least a share d of discordant rows, so psi is never taken below d: that also gives an
    answer, the floor for this n, where no discordant row was seen.
    """

    def surplus(d: float) -> float:
        return d * math.sqrt(n) - _quantiles(max(discordant / n, d), d, alpha)

    if n < fewest(alpha, mid_p=True):
        return None
    return float(brentq(surplus, 1e-12, 1.0))


def rows_for_rate(difference: float, discordant: int, n: int, *, alpha: float) -> int | None:
    """Rows that show ``difference`` with 80 % power if rows stay as discordant as these; None for no difference."""
    if difference == 0:
        return None
    psi = max(discordant / n, abs(difference))
    rows = (_quantiles(psi, abs(difference), alpha) / difference) ** 2
    return math.ceil(max(rows, fewest(alpha, mid_p=True) / psi))


def _quantiles(psi: float, d: float, alpha: float) -> float:
    z_alpha, z_beta = float(stats.norm.isf(alpha / 2)), float(stats.norm.isf(1 - POWER))
    return z_alpha * math.sqrt(psi) + z_beta * math.sqrt(max(psi - d * d, 0.0))


def detectable_mean(deviation: float, n: int, *, alpha: float) -> float | None:
    """As ``detectable_rate``, for a mean of differences with this standard deviation; None where it is unknown."""
    if n < fewest(alpha, mid_p=False) or deviation == 0:
        return None
    return float(stats.t.isf(alpha / 2, n - 1) + stats.t.isf(1 - POWER, n - 1)) * deviation / math.sqrt(n)


def rows_for_mean(difference: float, deviation: float, *, alpha: float) -> int | None:
    if difference == 0 or deviation == 0:
        return None
    z = float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - POWER))
    return max(math.ceil((z * deviation / difference) ** 2), fewest(alpha, mid_p=False))
