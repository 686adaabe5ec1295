"""The state of a running experiment, safe to read at any moment and as often as one likes.

1. Are the units where the weights say? If not (sample-ratio mismatch), every result is withheld: units are being
   lost or moved, and no difference can be trusted.
2. Per metric and arm: the difference from the control with an interval that holds at all looks.
3. One sentence, from the primary metric alone. The others inform; they do not decide.

Counts must come from one set of weights. After a change of weights, count only units first exposed since then:
pooled over both, a drift in time would pass for a difference between arms. Raising ``Split.share`` is safe.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from umbel.core.errors import ConfigError
from umbel.core.sizes import human_expected
from umbel.experiments import sequential
from umbel.experiments.comparison import Interval
from umbel.experiments.sequential import HORIZON, MISMATCH_ABOVE, Sums

FEWEST = 50
"""Units that each arm needs before an interval is shown: the sequence is asymptotic."""

Verdict = Literal["better", "worse", "undecided", "too early"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured per unit."""

    name: str
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """One arm so far."""

    exposed: int
    """Units assigned to it, whether or not an outcome came."""
    sums: Mapping[str, Sums] = field(default_factory=dict)
    """Metric name -> outcomes, one value per unit."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether the arms hold the units that the weights promise."""

    e_value: float
    tripped: bool
    observed: Mapping[str, int]
    expected: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One arm against the control, by one metric. Differences are arm minus control."""

    metric: str
    arm: str
    n: int
    n_control: int
    mean: float | None
    mean_control: float | None
    difference: float | None
    interval: Interval | None
    """Holds at all looks, and for all arms of this metric together. None while it is too early."""
    p_value: float | None
    verdict: Verdict
    """Better or worse is meant by the metric's own direction."""
    missing_differs: bool
    """Outcomes come in at different rates in the two arms: the difference may be one of who answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    sample_ratio: SampleRatio
    withheld: bool
    """Whether the mismatch hides all effects; then ``effects`` is empty and nothing may be promoted."""
    effects: tuple[Effect, ...]
    decision: str
    """What may be done now, in one sentence."""
    winner: str | None
    """The arm that the primary metric shows to be best: a better arm, or the control where every other is worse."""


def monitor(
    arms: Mapping[str, ArmCounts],
    *,
    weights: Mapping[str, float],
    metrics: tuple[Metric, ...],
    primary: str,
    control: str,
    alpha: float = 0.05,
    horizon: float = HORIZON,
) -> Report:
    """Judges the arms of one experiment. ``alpha`` is shared out over the arms beside the control (Bonferroni)."""
    _check(arms, weights, metrics, primary, control)
    ratio = sample_ratio({name: counts.exposed for name, counts in arms.items()}, weights)
    if ratio.tripped:
        return Report(sample_ratio=ratio, withheld=True, effects=(), decision=_mismatch(ratio), winner=None)
    others = [name for name in arms if name != control]
    effects = tuple(
        _effect(metric, name, arms[name], arms[control], alpha / len(others), horizon)
        for metric in metrics
        for name in others
    )
    deciding = [effect for effect in effects if effect.metric == primary]
    winner = _winner(deciding, next(m for m in metrics if m.name == primary), control)
    return Report(
        sample_ratio=ratio,
        withheld=False,
        effects=effects,
        decision=_decision(deciding, winner, control),
        winner=winner,
    )


def sample_ratio(exposed: Mapping[str, int], weights: Mapping[str, float]) -> SampleRatio:
    """The sequential check: may be repeated on every refresh, unlike a chi-square test."""
    names = list(exposed)
    total, whole = sum(exposed.values()), sum(weights[name] for name in names)
    log_e = float(sequential.log_mismatch([exposed[name] for name in names], [weights[name] for name in names]))
    return SampleRatio(
        e_value=_exp(log_e),
        tripped=_exp(log_e) > MISMATCH_ABOVE,
        observed=dict(exposed),
        expected={name: total * weights[name] / whole for name in names},
    )


def _exp(log_e: float) -> float:
    """Capped where a float would overflow; JSON knows no infinity either."""
    return math.exp(min(log_e, 690.0))


def _effect(metric: Metric, name: str, arm: ArmCounts, control: ArmCounts, alpha: float, horizon: float) -> Effect:
    ours, theirs = arm.sums.get(metric.name, Sums(0, 0.0, 0.0)), control.sums.get(metric.name, Sums(0, 0.0, 0.0))
    found = None
    if min(ours.n, theirs.n) >= FEWEST:
        found = sequential.difference(ours, theirs, alpha=alpha, horizon=horizon)
    both = ours.n > 0 and theirs.n > 0
    return Effect(
        metric=metric.name,
        arm=name,
        n=ours.n,
        n_control=theirs.n,
        mean=ours.mean if ours.n else None,
        mean_control=theirs.mean if theirs.n else None,
        difference=ours.mean - theirs.mean if both else None,
        interval=found.interval if found else None,
        p_value=found.p_value if found else None,
        verdict=_verdict(metric, found),
        missing_differs=_missing_differs(ours.n, arm.exposed, theirs.n, control.exposed, alpha, horizon),
    )


def _verdict(metric: Metric, found: sequential.Estimate | None) -> Verdict:
    if found is None:
        return "too early"
    if not found.interval.excludes(0.0):
        return "undecided"
    return "better" if (found.value > 0) == metric.higher_is_better else "worse"


def _missing_differs(n: int, exposed: int, n_control: int, exposed_control: int, alpha: float, horizon: float) -> bool:
    if min(exposed, exposed_control) < FEWEST:
        return False
    answered = sequential.difference(
        Sums(exposed, n, n, True), Sums(exposed_control, n_control, n_control, True), alpha=alpha, horizon=horizon
    )
    return answered is not None and answered.interval.excludes(0.0)


def _winner(deciding: list[Effect], metric: Metric, control: str) -> str | None:
    sound = [effect for effect in deciding if not effect.missing_differs]
    better = [effect for effect in sound if effect.verdict == "better"]
    if better:
        sign = 1 if metric.higher_is_better else -1
        return max(better, key=lambda effect: sign * (effect.difference or 0.0)).arm
    return control if len(sound) == len(deciding) and all(effect.verdict == "worse" for effect in sound) else None


def _decision(deciding: list[Effect], winner: str | None, control: str) -> str:
    found = "; ".join(_finding(effect, control) for effect in deciding) + "."
    if winner is None:
        return found
    return f"{found} It is safe to stop: {'keep' if winner == control else 'promote'} {winner}."


def _finding(effect: Effect, control: str) -> str:
    arm, metric = effect.arm, effect.metric
    if effect.verdict == "too early":
        counts = f"{effect.n:,} outcomes of {arm}, {effect.n_control:,} of {control}"
        return f"too early to compare {arm} with {control} by {metric}: {counts}; each needs {FEWEST}, with some spread"
    if effect.verdict == "undecided":
        text = f"cannot tell {arm} from {control} by {metric} yet: {_size(effect)}"
    else:
        text = f"{arm} is {effect.verdict} than {control} by {metric}: {_size(effect)}"
    if effect.missing_differs:
        text += ", but outcomes come in at different rates in the two arms: find out first who does not answer"
    return text


def _size(effect: Effect) -> str:
    assert effect.interval is not None
    assert effect.difference is not None
    low, high = effect.interval.low, effect.interval.high
    return f"{effect.difference:+.3g} (always-valid interval {low:+.3g} to {high:+.3g})"


def _mismatch(ratio: SampleRatio) -> str:
    pairs = ((name, count, ratio.expected[name]) for name, count in ratio.observed.items())
    seen = ", ".join(f"{name} {count:,} (expected {human_expected(expected)})" for name, count, expected in pairs)
    return (
        f"results are withheld: the units are not where the weights say: {seen}; e = {ratio.e_value:.3g}. Look for "
        "an arm whose requests fail before exposure is recorded, a filter on one arm, or weights changed in between."
    )


def _check(
    arms: Mapping[str, ArmCounts], weights: Mapping[str, float], metrics: tuple[Metric, ...], primary: str, control: str
) -> None:
    names = [metric.name for metric in metrics]
    if control not in arms or len(arms) < 2:
        raise ConfigError(
            f"an experiment needs its control {control!r} and another arm, got {list(arms)}.", param="arms"
        )
    if set(weights) != set(arms):
        raise ConfigError(f"weights are for {sorted(weights)} but the arms are {sorted(arms)}.", param="weights")
    if primary not in names or len(set(names)) != len(names):
        raise ConfigError(
            f"the primary metric {primary!r} must be one of the metrics, each named once: {names}.", param="metrics"
        )
    for arm, counts in arms.items():
        for name, sums in counts.sums.items():
            if name not in names:
                raise ConfigError(f"arm {arm!r} counts an unknown metric {name!r}.", hint=f"known: {', '.join(names)}")
            if sums.n > counts.exposed:
                raise ConfigError(
                    f"arm {arm!r} has {sums.n} outcomes of {name!r} but only {counts.exposed} exposed units.",
                    hint="pass one value per unit: average a unit's outcomes first",
                )
