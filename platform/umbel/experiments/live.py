"""An experiment as the registry keeps it: set up, split, read and decided. The one file here that knows the registry.

The server's routes and the command line both work through ``Live``; ``client.experiments`` has the same methods.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from umbel.core.contract import shown
from umbel.core.errors import GateFailed, NotFound, Unavailable, UsageError
from umbel.core.names import meant
from umbel.core.protocols import VersionRef
from umbel.core.wire.adapters import AliasEventView
from umbel.core.wire.experiments import (
    ERROR_RATE,
    GUARDRAILS,
    ArmView,
    DecideRequest,
    DecisionView,
    ExperimentReport,
    ExperimentSpec,
    ExperimentView,
    MetricView,
)
from umbel.experiments import reading
from umbel.experiments.assign import HASH_VERSION, Split
from umbel.registry import Registry
from umbel.registry.records import Experiment, ExperimentStatus, Version

_PAGE = 200


class Live:
    """Blocking, and thread-safe as the registry is. ``actor`` goes into the audit log."""

    def __init__(self, registry: Registry, actor: str | None = None) -> None:
        self.registry = registry
        self.actor = actor

    def create(self, spec: ExperimentSpec) -> ExperimentView:
        """Raises UsageError where the arms cannot stand in for each other, Conflict (``name_taken``)."""
        versions = {arm.name: self._version(arm.model) for arm in spec.arms}
        _check_exchangeable(versions)
        (_need_same if spec.aa else _refuse_same)(versions)
        made = self.registry.experiments.create(
            spec.name,
            arms={name: str(version.ref) for name, version in versions.items()},
            weights=spec.weights,
            metric=spec.metrics[0].name,
            config=_config(spec),
            salt=spec.salt,
            actor=self.actor,
        )
        return view(made)

    def _version(self, model: str) -> Version:
        """What ``model`` means now. A reference that may not answer is refused here."""
        ref = self.registry.resolve(model)
        return self.registry.versions.get(f"{ref.name}@{ref.digest}")

    def list(self, status: str | None = None) -> Iterator[ExperimentView]:
        """Newest first."""
        wanted = ExperimentStatus(status) if status else None
        cursor: str | None = None
        while True:
            page = self.registry.experiments.list(status=wanted, limit=_PAGE, cursor=cursor)
            yield from map(view, page.items)
            cursor = page.next
            if cursor is None:
                return

    def report(self, name: str) -> ExperimentReport:
        """Counts and differences as of now; may be looked at as often as one likes."""
        experiment = view(self.registry.experiments.get(name))
        return reading.read(experiment, self.registry.experiments.counts(experiment.name))

    def ramp(self, name: str, share: float) -> ExperimentView:
        """Opens it to another part of the units; nobody who is in changes arm."""
        return view(self.registry.experiments.ramp(name, share, actor=self.actor))

    def stop(self, name: str, reason: str | None = None) -> ExperimentView:
        """From now on the control answers; late outcomes still count, and it can still be decided."""
        return view(self.registry.experiments.stop(name, actor=self.actor, reason=reason))

    def decide(self, name: str, how: DecideRequest) -> DecisionView:
        """Closes it with a winner, and promotes that version with the experiment as evidence, in one transaction.

        Raises GateFailed where the report does not carry the decision: ``sample_ratio_mismatch`` and ``aa_test``
        whatever is asked; ``undecided``, ``another_winner`` and ``guardrail_worse`` unless ``force`` is.
        """
        found = self.report(name)
        if found.experiment.status != ExperimentStatus.DECIDED:  # else the registry says that it is closed
            _gate(found, how)
        winner = how.winner or found.winner
        assert winner is not None or found.experiment.status == ExperimentStatus.DECIDED
        given: dict[str, Any] = {
            "winner": winner,
            "evidence": reading.evidence(found, forced=how.force),
            "reason": how.reason or found.sentence.partition(" It is safe")[0],
            "actor": self.actor,
        }
        name = found.experiment.name
        if not how.promote or winner is None:
            return DecisionView(experiment=view(self.registry.experiments.decide(name, **given)))
        closed, moved = self.registry.experiments.decide_and_promote(name, **given, untested=how.force)
        return DecisionView(experiment=view(closed), promoted=AliasEventView.model_validate(moved))


def assign(registry: Registry, experiment: Experiment, unit: str, *, request_id: str | None = None) -> str | None:
    """The arm that ``unit`` gets, written down before this returns; None while the ramp leaves the unit outside.

    A unit that was in before keeps its first arm, whatever the split says now. Raises Conflict
    (``experiment_stopped``).
    """
    arm = split_of(experiment).arm(unit) or registry.experiments.assigned(experiment.name, unit)
    if arm is None:
        return None
    return registry.experiments.expose(experiment.name, unit, arm, request_id=request_id)


def split_of(experiment: Experiment) -> Split:
    if experiment.hash_version != HASH_VERSION:
        raise Unavailable(
            f"{experiment.name!r} splits by hash {experiment.hash_version}; this program knows {HASH_VERSION}.",
            code="unknown_hash_version",
            hint="serve it with the version of umbel that made it, or stop it",
        )
    return Split(
        salt=experiment.salt,
        arms=tuple(arm.name for arm in experiment.arms),
        weights=tuple(arm.weight for arm in experiment.arms),
        share=float(experiment.config.get("share", 1.0)),
    )


def answering(experiment: Experiment) -> VersionRef:
    """What answers for an experiment where it assigns nobody: the winner, or else the control."""
    winner = (experiment.decision or {}).get("winner")
    return next((arm.version for arm in experiment.arms if arm.name == winner), experiment.arms[0].version)


def view(experiment: Experiment) -> ExperimentView:
    whole = sum(arm.weight for arm in experiment.arms)
    config = experiment.config
    listed: Mapping[str, bool] = config.get("metrics") or {experiment.metric: True}
    return ExperimentView(
        id=experiment.id,
        name=experiment.name,
        status=experiment.status,
        arms=[
            ArmView(name=arm.name, version=str(arm.version), digest=arm.version.digest, weight=arm.weight / whole)
            for arm in experiment.arms
        ],
        metrics=[MetricView(name=name, higher_is_better=higher) for name, higher in listed.items()],
        share=config.get("share", 1.0),
        aa=config.get("aa", False),
        alpha=config.get("alpha", 0.05),
        horizon=config.get("horizon", 5000),
        decision=dict(experiment.decision) if experiment.decision else None,
        created_by=experiment.created_by,
        created_at=experiment.created_at,
        stopped_at=experiment.stopped_at,
    )


def _config(spec: ExperimentSpec) -> dict[str, Any]:
    """All that is fixed when an experiment begins, but ``share``: choosing it later would be peeking."""
    own = {metric.name: metric.higher_is_better for metric in spec.metrics}
    return {
        "metrics": own | dict.fromkeys(GUARDRAILS, False),
        "share": spec.share,
        "aa": spec.aa,
        "alpha": spec.alpha,
        "horizon": spec.horizon,
    }


def _check_exchangeable(versions: Mapping[str, Version]) -> None:
    """A caller must be able to read the answer of any arm in the same way."""
    (control, first), *others = versions.items()
    for arm, version in others:
        for what in ("backbone", "output_head", "labels", "multi_label"):
            ours, theirs = (_property(one, what) for one in (first, version))
            if ours != theirs:
                raise UsageError(
                    f"{control} ({first.ref}) and {arm} ({version.ref}) differ in {what}: {shown(ours)} and "
                    f"{shown(theirs)}.",
                    code="not_comparable",
                    param="arms",
                    hint="arms must answer the same question on the same backbone",
                )


def _property(version: Version, what: str) -> Any:
    return getattr(version, what, None) or getattr(version.contract, what, None)


def _need_same(versions: Mapping[str, Version]) -> None:
    if len({version.digest for version in versions.values()}) > 1:
        listed = ", ".join(str(version.ref) for version in versions.values())
        raise UsageError(
            f"an A/A test compares a version with itself, got {listed}.",
            code="not_one_version",
            param="arms",
            hint="name one version for all arms, or leave --aa out",
        )


def _refuse_same(versions: Mapping[str, Version]) -> None:
    seen: dict[str, str] = {}
    for arm, version in versions.items():
        if version.digest in seen:
            raise _same(seen[version.digest], versions[seen[version.digest]], arm, version)
        seen[version.digest] = arm


def _same(first: str, one: Version, then: str, other: Version) -> UsageError:
    """Two names may stand for the same bytes: what was published under the one was published under the other."""
    if one.ref == other.ref:
        told, fix = f"{first} and {then} are the same version, {one.ref}.", "name two versions"
    else:
        told = f"{first} ({one.ref}) and {then} ({other.ref}) hold the same bytes: both are {one.digest[:19]}..."
        fix = "name two versions that differ"
    return UsageError(told, code="same_version", param="arms", hint=f"{fix}; or add --aa to test the set-up itself")


def _gate(found: ExperimentReport, how: DecideRequest) -> None:
    name, arms = found.experiment.name, [arm.name for arm in found.experiment.arms]
    _check_winner(name, arms, how)
    if found.experiment.aa:
        raise GateFailed(
            f"{name!r} is an A/A test: its arms are the same version.",
            code="aa_test",
            hint=f"umbel experiments stop {name}",
        )
    if found.withheld:
        raise GateFailed(
            found.sentence,
            code="sample_ratio_mismatch",
            hint=f"find the cause, then stop {name} and start another: these counts prove nothing",
        )
    if how.force:
        return
    force = _forced(how.winner, arms)
    if found.winner is None:
        raise GateFailed(
            found.sentence,
            code="undecided",
            hint=f"wait for more outcomes, or stop it: umbel experiments stop {name}; to decide all the same: {force}",
        )
    if how.winner not in (None, found.winner):
        raise GateFailed(
            f"the winner is {found.winner}, not {how.winner}.",
            code="another_winner",
            hint=f"to decide for {how.winner} all the same: {force}",
        )
    if reading.worse(found, found.winner, ERROR_RATE):
        raise GateFailed(
            f"{found.winner} wins by {found.experiment.metrics[0].name}, but fails more often: {found.warnings[0]}",
            code="guardrail_worse",
            hint=f"look at its errors first; to decide all the same: {force}",
        )


def _forced(winner: str | None, arms: list[str]) -> str:
    which = "" if winner else f", where ARM is {' or '.join(arms)}"
    return f"--force --winner {winner or 'ARM'} --reason 'why'{which}"


def _check_winner(name: str, arms: list[str], how: DecideRequest) -> None:
    listed = ", ".join(arms)
    if how.winner is not None and how.winner not in arms:
        raise NotFound(
            f"{name!r} has no arm {how.winner!r}.",
            code="arm_not_found",
            param="winner",
            hint=f"{meant(how.winner, arms)}its arms: {listed}",
        )
    if how.force and how.winner is None:
        raise UsageError(
            f"force needs a winner: the experiment names none of its arms {listed}.",
            code="missing_winner",
            param="winner",
            hint=_forced(None, arms),
        )
