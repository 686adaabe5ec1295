"""Runs: what a training job is asked to do, what it says while it works, and who works on it.

``Runs`` is a ``core.protocols.RunLog``. A job that arrives over HTTP is enqueued; a worker leases it, says it lives
by ``heartbeat``, and when it falls silent another worker takes the run over from its last checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from umbel.core.clock import new_id, now_ms
from umbel.core.errors import Conflict, NotFound
from umbel.core.names import check_name, nearest
from umbel.registry.audit import note, who
from umbel.registry.cursor import Keyset
from umbel.registry.database import Database, upsert
from umbel.registry.models import MetricPointRow, RunEventRow, RunRow
from umbel.registry.records import FINISHED, MetricPoint, Page, Run, RunEvent, RunStatus

LEASE_MS = 60_000
"""A run whose owner was silent for this long may be taken over."""


class Runs:
    def __init__(self, database: Database) -> None:
        self.database = database

    def start(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        seed: int,
        actor: str | None = None,
        owner: str | None = None,
    ) -> str:
        """A run that this process works on itself; with an ``owner`` others may take it over when it falls silent."""
        return self._open(name, params, seed, RunStatus.RUNNING, actor, owner)

    def enqueue(self, *, name: str, params: Mapping[str, Any], seed: int, actor: str | None = None) -> str:
        """A run for a worker to lease."""
        return self._open(name, params, seed, RunStatus.QUEUED, actor, None)

    def metrics(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """A step that is measured again (after a resume) replaces what it said before."""
        with self.database.write() as session:
            _row(session, run, lock=True).heartbeat_at = now_ms()
            for key, value in values.items():
                row = {"run_id": run, "key": key, "step": step, "value": value if math.isfinite(value) else None}
                upsert(session, MetricPointRow, row)

    def event(self, run: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        with self.database.write() as session:
            _say(session, _row(session, run, lock=True), message, level, data)

    def cancelled(self, run: str) -> bool:
        with self.database.read() as session:
            row = _row(session, run)
            return row.cancel_requested or row.status == RunStatus.CANCELLED

    def finish(
        self, run: str, *, status: str, error: str | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        """Saying it again is no error; saying something else is a Conflict (``run_finished``)."""
        wanted = RunStatus(status)
        assert wanted in FINISHED, status
        with self.database.write() as session:
            row = _row(session, run, lock=True)
            if row.status in FINISHED:
                _refuse_other_end(row, wanted)
                return
            row.error, row.summary = error, dict(summary) if summary is not None else None
            _end(session, row, wanted, error)

    def cancel(self, run: str, *, actor: str | None = None, gone: Callable[[Run], bool] = lambda _: False) -> Run:
        """Ends a run that waits; asks a run that works to stop, which it does at its next step.

        ``gone`` tells of a run that nobody works on any more, though it never said an end: that one is ended, too.
        """
        with self.database.write() as session:
            row = _row(session, run, lock=True)
            if row.status in FINISHED:
                raise Conflict(
                    f"{run} {RunStatus(row.status).as_told} already.",
                    code="run_finished",
                    hint=f"umbel runs show {run}",
                )
            row.cancel_requested = True
            note(session, who(actor), "run.cancel", run)
            if row.status != RunStatus.RUNNING or gone(_run(row)):
                _end(session, row, RunStatus.CANCELLED, None)
            return _run(row)

    def lease(self, owner: str, *, lease_ms: int = LEASE_MS) -> Run | None:
        """The oldest run that waits or whose worker fell silent, now ``owner``'s; None if there is nothing to do."""
        with self.database.write() as session:
            row = session.scalar(_leasable(now_ms() - lease_ms))
            if row is None:
                return None
            row.status, row.lease_owner, row.heartbeat_at = RunStatus.RUNNING, owner, now_ms()
            row.attempt += 1
            row.started_at = row.started_at or now_ms()
            _say(session, row, f"attempt {row.attempt} by {owner}", "info", None)
            return _run(row)

    def take(
        self, run: str, owner: str, *, gone: Callable[[str], bool], lease_ms: int = LEASE_MS, asked: bool = False
    ) -> Run:
        """This run, now ``owner``'s; raises Conflict (``run_taken``) where another's lease holds.

        ``gone`` tells of an owner that is known to be dead before its lease has run out. A run that failed or was
        cancelled is open again; one that succeeded needs no lease. ``asked``: somebody wants it to go on, so a wish to
        cancel it that nobody heard is over.
        """
        with self.database.write() as session:
            row = _row(session, run, lock=True)
            other, silent = row.lease_owner, now_ms() - (row.heartbeat_at or 0)
            ended = row.status in FINISHED
            if row.status == RunStatus.SUCCEEDED or (other == owner and row.status not in FINISHED):
                return _run(row)
            if other is not None and silent <= lease_ms and not gone(other):
                raise Conflict(
                    f"{run} is being worked on by {other}.",
                    code="run_taken",
                    hint=f"watch it: umbel runs logs {run} -f; or stop it: umbel runs cancel {run}",
                )
            taken_over = row.attempt > 0
            row.status, row.lease_owner, row.heartbeat_at = RunStatus.RUNNING, owner, now_ms()
            row.error, row.finished_at, row.cancel_requested = None, None, row.cancel_requested and not (ended or asked)
            row.attempt += 1
            row.started_at = row.started_at or now_ms()
            if taken_over:
                _say(session, row, f"attempt {row.attempt} by {owner}", "info", None)
            return _run(row)

    def release(self, run: str, owner: str) -> None:
        """Gives the lease back, without an end: whoever wants to may go on with the run."""
        mine = update(RunRow).where(RunRow.id == run, RunRow.lease_owner == owner)
        with self.database.write() as session:
            session.execute(mine.values(lease_owner=None, heartbeat_at=now_ms()))

    def heartbeat(self, run: str, owner: str) -> bool:
        """False if the lease is somebody else's by now: stop working."""
        mine = update(RunRow).where(RunRow.id == run, RunRow.lease_owner == owner, RunRow.status == RunStatus.RUNNING)
        with self.database.write() as session:
            return session.scalar(mine.values(heartbeat_at=now_ms()).returning(RunRow.id)) is not None

    def get(self, run: str) -> Run:
        with self.database.read() as session:
            return _run(_row(session, run))

    def list(
        self,
        *,
        name: str | None = None,
        status: RunStatus | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Run]:
        """Newest first."""
        keys = Keyset(f"runs {name} {status}", RunRow.created_at, RunRow.id, descending=True)
        statement = select(RunRow)
        if name is not None:
            statement = statement.where(RunRow.name == name)
        if status is not None:
            statement = statement.where(RunRow.status == status)
        with self.database.read() as session:
            rows = list(session.scalars(keys.page(statement, limit, cursor)))
            following = keys.next(rows, limit, lambda row: (row.created_at, row.id))
            return Page(tuple(_run(row) for row in rows[:limit]), following)

    def nearest(self, run: str) -> str | None:
        """What somebody may have meant who named no run: the only id that begins so, or else an adapter that has runs
        and is called much like it."""
        with self.database.read() as session:
            return _begins(session, run) or _named_like(session, run)

    def events(self, run: str, *, after: int = 0, limit: int = 1000) -> tuple[RunEvent, ...]:
        """In order, those with a ``seq`` above ``after``."""
        statement = select(RunEventRow).where(RunEventRow.run_id == run, RunEventRow.seq > after)
        with self.database.read() as session:
            _row(session, run)
            rows = session.scalars(statement.order_by(RunEventRow.seq).limit(limit))
            return tuple(
                RunEvent(seq=row.seq, level=row.level, message=row.message, data=row.data, at=row.at) for row in rows
            )

    def points(self, run: str, *, key: str | None = None, after: int = -1) -> tuple[MetricPoint, ...]:
        """What the run measured, by key and step."""
        statement = select(MetricPointRow).where(MetricPointRow.run_id == run, MetricPointRow.step > after)
        if key is not None:
            statement = statement.where(MetricPointRow.key == key)
        with self.database.read() as session:
            _row(session, run)
            rows = session.scalars(statement.order_by(MetricPointRow.key, MetricPointRow.step))
            return tuple(MetricPoint(row.key, row.step, row.value) for row in rows)

    def _open(
        self, name: str, params: Mapping[str, Any], seed: int, status: RunStatus, actor: str | None, owner: str | None
    ) -> str:
        run, now, working = new_id("run"), now_ms(), status == RunStatus.RUNNING
        row = RunRow(
            id=run,
            name=check_name(name),
            status=status,
            params=dict(params),
            seed=seed,
            attempt=int(working),
            heartbeat_at=now if working else None,
            lease_owner=owner,
            cancel_requested=False,
            last_seq=0,
            created_by=who(actor),
            created_at=now,
            started_at=now if working else None,
        )
        with self.database.write() as session:
            session.add(row)
            session.flush()
            _say(session, row, str(status), "info", None)
        return run


def _leasable(stale: int) -> Select[RunRow]:
    # A run without an owner belongs to a process that opened it itself: nobody else can go on with it.
    abandoned = (RunRow.status == RunStatus.RUNNING) & RunRow.lease_owner.is_not(None) & (RunRow.heartbeat_at < stale)
    waiting = RunRow.status == RunStatus.QUEUED
    statement = select(RunRow).where(or_(waiting, abandoned)).order_by(RunRow.created_at, RunRow.id).limit(1)
    return statement.with_for_update(skip_locked=True)  # two workers take two runs


def _row(session: Session, run: str, *, lock: bool = False) -> RunRow:
    row = session.get(RunRow, run, with_for_update=lock or None)
    if row is None:
        near = _begins(session, run) or _newest_of(session, _named_like(session, run))
        meant = f"did you mean {near}? " if near else ""
        raise NotFound(f"there is no run {run!r}.", code="run_not_found", hint=f"{meant}umbel runs list")
    return row


def _begins(session: Session, run: str) -> str | None:
    """The only id that begins so."""
    found = list(session.scalars(select(RunRow.id).where(RunRow.id.startswith(run, autoescape=True)).limit(2)))
    return found[0] if len(found) == 1 else None


def _named_like(session: Session, name: str) -> str | None:
    """The adapter with runs that is called most like it."""
    return nearest(name, session.scalars(select(RunRow.name).distinct()))


def _newest_of(session: Session, name: str | None) -> str | None:
    """``run-01k9... (mood)``: what takes a run alone is told its id."""
    newest = select(RunRow.id).where(RunRow.name == name).order_by(RunRow.created_at.desc(), RunRow.id.desc()).limit(1)
    found = session.scalar(newest)
    return None if found is None else f"{found} ({name})"


def _say(session: Session, row: RunRow, message: str, level: str, data: Mapping[str, Any] | None) -> None:
    """The next event; the caller's transaction holds the run's row, so that no number is given twice."""
    row.last_seq += 1
    plain = dict(data) if data is not None else None
    session.add(RunEventRow(run_id=row.id, seq=row.last_seq, level=level, message=message, data=plain, at=now_ms()))


def _end(session: Session, row: RunRow, status: RunStatus, error: str | None) -> None:
    row.status, row.finished_at, row.lease_owner = status, now_ms(), None
    _say(session, row, error or str(status), "error" if error else "info", None)


def _refuse_other_end(row: RunRow, wanted: RunStatus) -> None:
    if row.status != wanted:
        raise Conflict(
            f"{row.id} {RunStatus(row.status).as_told} already, it cannot be {wanted}.",
            code="run_finished",
            hint=f"umbel runs show {row.id}",
        )


def _run(row: RunRow) -> Run:
    return Run(
        id=row.id,
        name=row.name,
        status=RunStatus(row.status),
        params=row.params,
        seed=row.seed,
        attempt=row.attempt,
        lease_owner=row.lease_owner,
        heartbeat_at=row.heartbeat_at,
        cancel_requested=row.cancel_requested,
        error=row.error,
        summary=row.summary,
        created_by=row.created_by,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
