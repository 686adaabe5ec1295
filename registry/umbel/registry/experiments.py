"""Experiments: which versions share a name's traffic, who saw which, and what came of it.

Which arm a unit should get is arithmetic and lives in ``umbel.experiments``; here is what must not be lost: the first
assignment of a unit wins over every later one, and is written before the answer is generated.
"""

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from umbel.core.clock import new_id, now_ms
from umbel.core.errors import Conflict, NotFound, UsageError
from umbel.core.names import CHAMPION, AdapterRef, check_name, meant
from umbel.registry import lookup
from umbel.registry.aliases import move
from umbel.registry.audit import note, who
from umbel.registry.convert import version_ref
from umbel.registry.cursor import Keyset
from umbel.registry.database import Database
from umbel.registry.models import (
    AliasRow,
    ArmRow,
    ExperimentRow,
    ExposedRequestRow,
    ExposureRow,
    VersionRow,
)
from umbel.registry.outcomes import Outcome, keep, shown_to
from umbel.registry.records import AliasEvent, Arm, ArmCounts, Experiment, ExperimentStatus, Page
from umbel.registry.tally import tally

HASH_VERSION = 1
"""How a unit becomes a bucket; an experiment keeps the one that it began with."""

_ID = "exp-"
"""Ids begin so, and therefore no name may."""

_WITH = selectinload(ExperimentRow.arms).joinedload(ArmRow.version).joinedload(VersionRow.adapter)


class Experiments:
    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self,
        name: str,
        *,
        arms: Mapping[str, str],
        metric: str,
        weights: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
        salt: str | None = None,
        actor: str | None = None,
    ) -> Experiment:
        """``arms``: a reference for each arm's name, pinned to the version it means now; ``weights`` 1 where absent.

        The name may then stand as ``model``; it shares the name space of adapters and backbones.
        """
        if check_name(name, "experiment").startswith(_ID):
            raise UsageError(f"{name!r} looks like an experiment's id.", code="invalid_name", hint=f"drop {_ID!r}")
        shares = _weights(arms, weights or {})
        row = ExperimentRow(
            id=new_id("exp"),
            name=name,
            status=ExperimentStatus.RUNNING,
            metric=metric,
            salt=salt or secrets.token_hex(16),
            hash_version=HASH_VERSION,
            config=dict(config or {}),
            created_by=who(actor),
            created_at=now_ms(),
        )
        with self.database.write() as session:
            if not lookup.claim_name(session, name, "experiment"):
                raise Conflict(f"there is an experiment {name!r}.", code="name_taken", hint="choose another name")
            for adapter in sorted({AdapterRef.parse(ref).name for ref in arms.values()}):
                lookup.adapter_row(session, adapter, lock=True)  # nobody deletes an arm's version meanwhile
            row.arms = [_arm(session, *named, place, shares) for place, named in enumerate(arms.items())]
            session.add(row)
            note(session, row.created_by, "experiment.create", name, arms=dict(arms), weights=shares)
            session.flush()
            return _experiment(row)

    def get(self, name: str) -> Experiment:
        """By its name, or by the id that alias histories carry as evidence."""
        with self.database.read() as session:
            return _experiment(_row(session, name))

    def list(
        self, *, status: ExperimentStatus | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Experiment]:
        """Newest first."""
        keys = Keyset(f"experiments {status}", ExperimentRow.created_at, ExperimentRow.id, descending=True)
        statement = select(ExperimentRow).options(_WITH)
        if status is not None:
            statement = statement.where(ExperimentRow.status == status)
        with self.database.read() as session:
            rows = list(session.scalars(keys.page(statement, limit, cursor)))
            following = keys.next(rows, limit, lambda row: (row.created_at, row.id))
            return Page(tuple(_experiment(row) for row in rows[:limit]), following)

    def assigned(self, name: str, unit: str) -> str | None:
        """The arm that a unit got before, if it did."""
        with self.database.read() as session:
            row = _row(session, name)
            exposure = session.get(ExposureRow, (row.id, unit_hash(row.salt, unit)))
            return exposure.arm if exposure else None

    def expose(self, name: str, unit: str, arm: str, *, request_id: str | None = None) -> str:
        """Writes that ``unit`` gets ``arm`` and returns the arm that it really has: its first one, for ever.

        Call it before the answer is generated. ``request_id`` lets feedback name the request instead of the unit.
        Raises Conflict (``experiment_stopped``).
        """
        return self.database.transact(lambda session: _expose(session, name, unit, arm, request_id))

    def outcome(
        self,
        *,
        metric: str,
        value: float,
        idempotency_key: str,
        name: str | None = None,
        unit: str | None = None,
        request_id: str | None = None,
    ) -> bool:
        """Keeps one measurement of a unit (named by experiment and unit, or by a request); late ones count too.

        False if the key came before with the same content; Conflict (``idempotency_mismatch``) if with another.
        Keys of different experiments are different keys. An experiment whose ``config`` lists ``metrics`` takes no
        others (UsageError, ``unknown_metric``).
        """
        one = Outcome(
            metric=metric, value=value, idempotency_key=idempotency_key, name=name, unit=unit, request_id=request_id
        )
        return self.outcomes([one])[0]

    def outcomes(self, several: Sequence[Outcome]) -> tuple[bool, ...]:
        """All of them in one transaction, or none."""
        for one in several:
            if not math.isfinite(one.value):
                raise UsageError(f"{one.metric} = {one.value} is no measurement.", code="invalid_metric", param="value")
        return self.database.transact(lambda session: tuple(_outcome(session, one) for one in several))

    def counts(self, name: str) -> tuple[ArmCounts, ...]:
        """For each arm, units exposed and sums of each metric over units: what ``umbel.experiments`` judges."""
        with self.database.read() as session:
            row = _row(session, name)
            return tally(session, row.id, _experiment(row).arms)

    def ramp(self, name: str, share: float, *, actor: str | None = None) -> Experiment:
        """Opens the experiment to another part of the units, 0 to 1. Who is in stays in, whatever ``share`` becomes."""
        with self.database.write() as session:
            row = _row(session, name, lock=True)
            _refuse_closed(row, ExperimentStatus.STOPPED)
            before = row.config.get("share", 1.0)
            row.config = {**row.config, "share": share}
            note(session, who(actor), "experiment.ramp", row.name, before=before, after=share)
            return _experiment(row)

    def stop(self, name: str, *, actor: str | None = None, reason: str | None = None) -> Experiment:
        """No unit is exposed any more; outcomes may still arrive."""
        with self.database.write() as session:
            return _experiment(_close(session, name, ExperimentStatus.STOPPED, None, actor, reason))

    def decide(
        self,
        name: str,
        *,
        winner: str | None,
        evidence: Mapping[str, Any],
        actor: str | None = None,
        reason: str | None = None,
    ) -> Experiment:
        """Closes it for good with what was found; ``winner`` is an arm, or None if nothing changes. Moves no alias."""
        decision = {"winner": winner, "evidence": dict(evidence), "reason": reason}
        with self.database.write() as session:
            return _experiment(_close(session, name, ExperimentStatus.DECIDED, decision, actor, reason))

    def decide_and_promote(
        self,
        name: str,
        *,
        winner: str,
        evidence: Mapping[str, Any],
        actor: str | None = None,
        reason: str | None = None,
        untested: bool = False,
    ) -> tuple[Experiment, AliasEvent]:
        """``decide`` and, in the same transaction, the winner's version as its adapter's champion; the experiment's id
        is the evidence of the move.

        Raises Conflict (``champion_untested``) where the champion is none of the arms: the experiment says nothing
        about that version. ``untested`` moves it all the same.
        """
        decision = {"winner": winner, "evidence": dict(evidence), "reason": reason}
        with self.database.write() as session:
            row = _close(session, name, ExperimentStatus.DECIDED, decision, actor, reason)
            return _experiment(row), _promote(session, row, winner, who(actor), reason, untested)


def unit_hash(salt: str, unit: str) -> str:
    """What is kept of a unit: enough to know it again, not to say who it is."""
    return hashlib.sha256(salt.encode() + b"\0" + unit.encode()).hexdigest()


def _weights(arms: Mapping[str, str], weights: Mapping[str, float]) -> dict[str, float]:
    shares = {arm: float(weights.get(arm, 1.0)) for arm in arms}
    if len(arms) < 2 or set(weights) - set(arms) or not all(0 < share < math.inf for share in shares.values()):
        raise UsageError(
            f"arms {dict(arms)} with weights {dict(weights)} make no experiment.",
            code="invalid_arms",
            hint="at least two arms, each with a weight above 0",
        )
    return shares


def _arm(session: Session, arm: str, ref: str, place: int, shares: Mapping[str, float]) -> ArmRow:
    parsed = AdapterRef.parse(ref)
    version = lookup.version_row(session, parsed)
    lookup.refuse_unservable(parsed, version.number, version.digest, version.state, version.reason)
    return ArmRow(name=check_name(arm, "arm"), position=place, version=version, weight=shares[arm])


def _expose(session: Session, name: str, unit: str, arm: str, request_id: str | None) -> str:
    row = _row(session, name)
    if row.status != ExperimentStatus.RUNNING:
        raise Conflict(
            f"the experiment {name!r} is {row.status}.", code="experiment_stopped", hint="name an adapter instead"
        )
    _check_arm(row, arm)
    hashed = unit_hash(row.salt, unit)
    exposure = session.get(ExposureRow, (row.id, hashed))
    if exposure is None:
        exposure = ExposureRow(experiment_id=row.id, unit_hash=hashed, arm=arm, at=now_ms())
        session.add(exposure)
        session.flush()  # a race for the same unit is lost here, and tried again
    if request_id is not None and session.get(ExposedRequestRow, request_id) is None:
        session.add(ExposedRequestRow(request_id=request_id, experiment_id=row.id, unit_hash=hashed, at=now_ms()))
    return exposure.arm


def _outcome(session: Session, one: Outcome) -> bool:
    row = _row(session, one.name) if one.name is not None else None
    hashed = unit_hash(row.salt, one.unit) if row is not None and one.unit is not None else None
    return keep(session, shown_to(session, one, row, hashed), one)


def _close(
    session: Session,
    name: str,
    status: ExperimentStatus,
    decision: dict[str, Any] | None,
    actor: str | None,
    reason: str | None,
) -> ExperimentRow:
    row = _row(session, name, lock=True)
    _refuse_closed(row, status)
    if decision and decision["winner"] is not None:
        _check_arm(row, decision["winner"])
    row.status, row.decision, row.stopped_at = status, decision, row.stopped_at or now_ms()
    note(session, who(actor), f"experiment.{status}", row.name, decision=decision, reason=reason)
    return row


def _promote(
    session: Session, row: ExperimentRow, winner: str, actor: str, reason: str | None, untested: bool
) -> AliasEvent:
    version = next(arm.version for arm in row.arms if arm.name == winner)
    adapter = lookup.adapter_row(session, version.adapter.name, lock=True)
    ref = AdapterRef(adapter.name, version.number)
    lookup.refuse_deleted(ref, version.state)
    lookup.refuse_unservable(ref, version.number, version.digest, version.state, version.reason)
    champion = session.get(AliasRow, (adapter.id, CHAMPION))
    tested = {arm.version.number for arm in row.arms if arm.version.adapter_id == adapter.id}
    if champion is not None and champion.number not in tested and not untested:
        raise Conflict(
            f"{adapter.name} answers with {adapter.name}:{champion.number} now, which is no arm of {row.name!r}: the "
            f"experiment says nothing about it.",
            code="champion_untested",
            hint=f"test {ref} against {adapter.name}:{champion.number}; or decide without promoting: --no-promote",
        )
    return move(session, adapter, CHAMPION, ref.number, kind="set", actor=actor, reason=reason, evidence=row.id)


def _check_arm(row: ExperimentRow, arm: str) -> None:
    names = [known.name for known in row.arms]
    if arm not in names:
        raise NotFound(f"{row.name!r} has no arm {arm!r}.", code="arm_not_found", hint=f"its arms: {', '.join(names)}")


def _refuse_closed(row: ExperimentRow, status: ExperimentStatus) -> None:
    if row.status == ExperimentStatus.DECIDED or row.status == status:
        raise Conflict(
            f"the experiment {row.name!r} is {row.status} already.",
            code="experiment_closed",
            hint=f"umbel experiments status {row.name}",
        )


def _row(session: Session, name: str, *, lock: bool = False) -> ExperimentRow:
    known_by = ExperimentRow.id if name.startswith(_ID) else ExperimentRow.name
    statement = select(ExperimentRow).where(known_by == name).options(_WITH)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        near = meant(name, session.scalars(select(ExperimentRow.name)))
        raise NotFound(
            f"there is no experiment {name!r}.",
            code="experiment_not_found",
            hint=f"{near}umbel experiments list shows every experiment",
        )
    return row


def _experiment(row: ExperimentRow) -> Experiment:
    return Experiment(
        id=row.id,
        name=row.name,
        status=ExperimentStatus(row.status),
        metric=row.metric,
        arms=tuple(Arm(name=arm.name, version=version_ref(arm.version), weight=arm.weight) for arm in row.arms),
        salt=row.salt,
        hash_version=row.hash_version,
        config=row.config,
        decision=row.decision,
        created_by=row.created_by,
        created_at=row.created_at,
        stopped_at=row.stopped_at,
    )
