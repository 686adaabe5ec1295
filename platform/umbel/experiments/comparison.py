"""What a comparison of two versions on the same rows found, and the sentence a person reads.

Two conditions must hold before one version is called better: the test's p-value is below ``1 - confidence`` and
the interval excludes zero. They nearly always agree; where they do not, the honest answer is "cannot tell".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from statsmodels.stats.multitest import multipletests

Effect = Literal["g", "d_z", "none"]


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return self.low > value or self.high < value


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B, paired row by row. Every difference is A minus B, in the metric's own unit.

    ``None`` means that the rows cannot say: a gate must read it as "not shown", never as zero.
    """

    n: int
    """Rows scored by both."""
    discordant: int
    """Rows on which the two scores differ; only these bear on the test."""
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval | None
    """Of the difference. None where the rows have no spread to judge it by (one row, or the same difference on all)."""
    interval_a: Interval | None = None
    """Wilson interval of A's own rate; binary scores only."""
    interval_b: Interval | None = None
    p_value: float
    """Two-sided, of the hypothesis that A and B are alike."""
    p_adjusted: float | None = None
    """After Holm, where this is one of ``family`` comparisons; it then decides in place of ``p_value``."""
    family: int = 1
    effect: float | None
    """Cohen's g (how far from 1/2 is A's share of the discordant rows) or d_z (mean over standard deviation)."""
    effect_name: Effect
    minimum_detectable: float | None
    """The true difference that this many rows would show with 80 % power, given how much these rows disagree."""
    rows_needed: int | None
    """Rows for 80 % power if the true difference were the one seen. None where no difference was seen.

    An aid to planning the next test set, which is then tested once: to add rows and test again until it is
    significant is how false winners are made.
    """
    confidence: float = 0.95
    higher_is_better: bool = True
    points: bool = False
    """Whether to speak of the difference in points, hundredths of the metric."""
    method: str
    """Test and interval, in words."""

    @property
    def low(self) -> float | None:
        return self.interval.low if self.interval else None

    @property
    def high(self) -> float | None:
        return self.interval.high if self.interval else None

    @property
    def decided(self) -> bool:
        """Whether the rows show that one is better."""
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        excludes_zero = self.interval is None or self.interval.excludes(0.0)
        return self.difference != 0 and p < 1 - self.confidence and excludes_zero

    @property
    def winner(self) -> Literal["a", "b"] | None:
        """The better one where that is decided."""
        return self._leader if self.decided else None

    @property
    def rows_to_add(self) -> int | None:
        if self.decided or self.rows_needed is None:
            return None
        return max(self.rows_needed - self.n, 1)

    def sentence(self, name_a: str, name_b: str, metric: str) -> str:
        """The finding in one line of plain words, with its uncertainty."""
        if self.discordant == 0:
            return f"cannot tell {name_a} from {name_b} by {metric}: they score the same on {_count(self.n, 'row')}"
        if self.difference == 0:
            return (
                f"cannot tell {name_a} from {name_b} by {metric}: "
                f"equal on average over {_count(self.n, 'row')}{self._evidence()}"
            )
        leader = name_a if self._leader == "a" else name_b
        if self.decided:
            return f"{leader} is better {self._amount(metric)}{self._evidence()}"
        return (
            f"cannot tell {name_a} from {name_b}: {leader} leads {self._amount(metric)} on "
            f"{_count(self.n, 'row')}{self._evidence()}{self._advice()}"
        )

    @property
    def _leader(self) -> Literal["a", "b"]:
        return "a" if (self.difference > 0) == self.higher_is_better else "b"

    def _amount(self, metric: str) -> str:
        """How far the leader is ahead; of an error rate or a loss it has less, which is said."""
        size = self._number(abs(self.difference))
        amount = f"{size} {'point' if size == '1.0' else 'points'}" if self.points else size
        if not self.higher_is_better:
            return f"with {amount} less {metric}"
        return f"by {amount} {'of' if self.points else 'in'} {metric}"

    def _evidence(self) -> str:
        p = _p(self.p_value)
        if self.p_adjusted is not None and self.family > 1:
            p = f"{_p(self.p_adjusted)} after Holm over {self.family} comparisons"
        if self.interval is None:
            return f" (no interval: the rows show no spread; {p})"
        ends = sorted((self._leading(self.interval.low), self._leading(self.interval.high)))
        return f" ({100 * self.confidence:g} % CI {self._number(ends[0])} to {self._number(ends[1])}, {p})"

    def _leading(self, value: float) -> float:
        """A difference seen from the leader: positive where the leader is ahead."""
        return value if self.difference >= 0 else -value

    def _advice(self) -> str:
        if self.rows_to_add is None:
            return "; too few rows to say how many more would settle it"
        return f"; about {_count(_round_up(self.rows_to_add), 'more row')} would settle a difference of this size"

    def _number(self, value: float) -> str:
        text = f"{100 * value:.1f}" if self.points else f"{value:.3g}"
        return "0.0" if text == "-0.0" else text


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, each judged as one of the whole family (Holm 1979): report all, never only the best.

    The chance of any false winner among them stays below ``1 - confidence``. The intervals stay those of each alone.
    """
    if not comparisons:
        return []
    _, adjusted, _, _ = multipletests([each.p_value for each in comparisons], method="holm")
    family = len(comparisons)
    return [replace(c, p_adjusted=float(p), family=family) for c, p in zip(comparisons, adjusted, strict=True)]


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _round_up(n: int) -> int:
    """Two leading digits are all that such a forecast is worth."""
    step = int("1".ljust(len(str(n)) - 1, "0"))
    return -(-n // step) * step
