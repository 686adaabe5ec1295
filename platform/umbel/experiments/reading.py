"""From an experiment's counts to its report: ``monitor`` applied to what was kept, as plain values for every reader."""

from collections.abc import Sequence
from typing import Any

from umbel.core.wire.experiments import (
    GUARDRAILS,
    EffectView,
    ExperimentReport,
    ExperimentView,
    SampleRatioView,
)
from umbel.experiments.monitor import ArmCounts, Effect, Metric, Report, monitor
from umbel.experiments.sequential import Sums
from umbel.registry.records import ArmCounts as Counted


def read(experiment: ExperimentView, counts: Sequence[Counted]) -> ExperimentReport:
    found = monitor(
        {one.arm.name: _counts(experiment, one) for one in counts},
        weights={arm.name: arm.weight for arm in experiment.arms},
        metrics=tuple(Metric(metric.name, metric.higher_is_better) for metric in experiment.metrics),
        primary=experiment.metrics[0].name,
        control=experiment.control.name,
        alpha=experiment.alpha,
        horizon=experiment.horizon,
    )
    effects = [_effect(effect) for effect in found.effects]
    return ExperimentReport(
        experiment=experiment,
        sample_ratio=SampleRatioView.model_validate(found.sample_ratio),
        withheld=found.withheld,
        effects=effects,
        sentence=_decided(experiment) or _sentence(experiment, found),
        warnings=[_warning(effect) for effect in effects if effect.metric in GUARDRAILS and effect.verdict == "worse"],
        winner=None if experiment.aa else found.winner,
    )


def worse(report: ExperimentReport, arm: str, metric: str) -> bool:
    return any(one.verdict == "worse" for one in report.effects if (one.arm, one.metric) == (arm, metric))


def evidence(report: ExperimentReport, *, forced: bool) -> dict[str, Any]:
    """What is kept beside a decision: the deciding metric as it stood, and whether it carried the decision."""
    primary = report.experiment.metrics[0].name
    return {
        "metric": primary,
        "effects": [one.model_dump(exclude_none=True) for one in report.effects if one.metric == primary],
        "exposed": report.sample_ratio.observed,
        "sample_ratio_e": report.sample_ratio.e_value,
        "sentence": report.sentence,
        "forced": forced,
    }


def _counts(experiment: ExperimentView, counted: Counted) -> ArmCounts:
    known = {metric.name for metric in experiment.metrics}
    sums = {
        name: Sums(one.n, one.total, one.total_squares, one.zero_or_one)
        for name, one in counted.metrics.items()
        if name in known
    }
    return ArmCounts(counted.exposed, sums)


def _effect(effect: Effect) -> EffectView:
    interval = effect.interval
    return EffectView(
        metric=effect.metric,
        arm=effect.arm,
        n=effect.n,
        n_control=effect.n_control,
        mean=effect.mean,
        mean_control=effect.mean_control,
        difference=effect.difference,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        p_value=effect.p_value,
        verdict=effect.verdict,
        missing_differs=effect.missing_differs,
    )


def _decided(experiment: ExperimentView) -> str | None:
    """What was decided, and whether the outcomes carried it; None before. They may have moved on since."""
    if experiment.decision is None:
        return None
    winner, reason = experiment.decision.get("winner"), experiment.decision.get("reason")
    forced = (experiment.decision.get("evidence") or {}).get("forced")
    how = "by force" if forced else "by its outcomes"
    return f"It was decided {f'for {winner}' if winner else 'without a winner'}, {how}{f': {reason}' if reason else ''}"


def _sentence(experiment: ExperimentView, found: Report) -> str:
    if not experiment.aa or found.withheld:
        return found.decision
    if found.winner is None:
        return f"A/A test, as it should be so far: {found.decision}"
    return (
        f"A/A test: the arms are one version, yet {found.winner} wins by {experiment.metrics[0].name}. That happens in "
        f"at most {experiment.alpha:.0%} of sound set-ups: look for an arm whose requests or outcomes are treated "
        f"differently before you trust this set-up with two versions."
    )


def _warning(effect: EffectView) -> str:
    assert effect.difference is not None
    assert effect.low is not None
    assert effect.high is not None
    return (
        f"{effect.arm} is worse by {effect.metric}: {effect.difference:+.3g} "
        f"(always-valid interval {effect.low:+.3g} to {effect.high:+.3g})."
    )
