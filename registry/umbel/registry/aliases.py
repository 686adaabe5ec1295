"""Aliases: the only part of the registry that moves, and the record of every move.

An alias row can only point at a version that exists (a composite foreign key), each move is one transaction that
also writes its event, and two people who move one alias at once cannot both believe that they won (``expect``).
"""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.errors import Conflict, NotFound, UsageError
from umbel.core.names import CHAMPION, AdapterRef, check_alias
from umbel.registry import lookup
from umbel.registry.audit import note, who
from umbel.registry.convert import alias_event
from umbel.registry.database import Database
from umbel.registry.models import AdapterRow, AliasEventRow, AliasRow, VersionRow
from umbel.registry.records import AliasEvent
from umbel.registry.trail import Trail, before, events_of, trail_of

ABSENT = 0
"""As ``expect``: the alias must not exist yet."""


class Aliases:
    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, name: str) -> Mapping[str, int]:
        """The version number of each alias of an adapter."""
        with self.database.read() as session:
            adapter = lookup.adapter_row(session, name)
            rows = session.scalars(select(AliasRow).where(AliasRow.adapter_id == adapter.id).order_by(AliasRow.alias))
            return {row.alias: row.number for row in rows}

    def set(
        self,
        ref: str,
        alias: str,
        *,
        expect: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
        evidence: str | None = None,
    ) -> AliasEvent:
        """Points ``alias`` at the version that ``ref`` names now.

        ``expect`` is the number that the caller believes the alias has (``ABSENT``: that it does not exist); if
        somebody moved it since, nothing happens and Conflict (``alias_moved``) is raised. Where the alias is there
        already, no event is written and the returned one has equal ``origin`` and ``target``.
        """
        parsed = AdapterRef.parse(ref)
        if str(parsed) == parsed.name:
            raise UsageError(
                f"{ref!r} does not say which version.",
                code="invalid_reference",
                hint=f"{ref}:NUMBER; umbel adapters show {ref} lists them",
            )
        check_alias(alias)
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, parsed.name, lock=True)
            number = _servable(lookup.version_row(session, parsed), parsed)
            _expect(session, adapter, alias, expect)
            return move(session, adapter, alias, number, kind="set", actor=who(actor), reason=reason, evidence=evidence)

    def promote(
        self,
        ref: str,
        *,
        expect: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
        evidence: str | None = None,
    ) -> AliasEvent:
        """``set`` for ``champion``, which the bare name means."""
        return self.set(ref, CHAMPION, expect=expect, actor=actor, reason=reason, evidence=evidence)

    def rollback(
        self,
        name: str,
        alias: str = CHAMPION,
        *,
        expect: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
        evidence: str | None = None,
    ) -> AliasEvent:
        """Points the alias back at the version it had before the last ``set``; twice goes back twice.

        Needs no evaluation and moves no bytes. Versions that were yanked or deleted meanwhile are passed over.
        Raises Conflict (``nothing_to_roll_back``) where there is none before.
        """
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            _expect(session, adapter, alias, expect)
            trail = trail_of(session, adapter, alias)
            number = before(session, adapter, trail)
            if number is None:
                raise _nothing_before(name, alias, trail)
            by = who(actor)
            return move(session, adapter, alias, number, kind="rollback", actor=by, reason=reason, evidence=evidence)

    def remove(
        self,
        name: str,
        alias: str,
        *,
        expect: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> AliasEvent:
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            _expect(session, adapter, alias, expect)
            if session.get(AliasRow, (adapter.id, alias)) is None:
                raise NotFound(
                    f"{name!r} has no alias {alias!r}.", code="alias_not_found", hint=f"umbel adapters show {name}"
                )
            return move(session, adapter, alias, None, kind="remove", actor=who(actor), reason=reason)

    def history(self, name: str, alias: str | None = None) -> tuple[AliasEvent, ...]:
        """Every move, oldest first; removed aliases too."""
        with self.database.read() as session:
            adapter = lookup.adapter_row(session, name)
            return tuple(alias_event(row, name) for row in events_of(session, adapter, alias))


def move(
    session: Session,
    adapter: AdapterRow,
    alias: str,
    number: int | None,
    *,
    kind: str,
    actor: str,
    reason: str | None = None,
    evidence: str | None = None,
) -> AliasEvent:
    """Moves (or with ``number`` None removes) an alias in the caller's transaction, which holds the adapter's row."""
    row = session.get(AliasRow, (adapter.id, alias))
    origin = row.number if row else None
    event = AliasEventRow(
        adapter_id=adapter.id,
        alias=alias,
        kind=kind,
        origin=origin,
        target=number,
        actor=actor,
        reason=reason,
        evidence=evidence,
        at=now_ms(),
    )
    if origin != number:
        _place(session, adapter, alias, row, number, actor)
        session.add(event)
        note(session, actor, f"alias.{kind}", f"{adapter.name}@{alias}", before=origin, after=number, reason=reason)
    return alias_event(event, adapter.name)


def _place(
    session: Session, adapter: AdapterRow, alias: str, row: AliasRow | None, number: int | None, actor: str
) -> None:
    if alias == CHAMPION and number is not None:
        _describe(session, adapter, number)
    if number is None:
        session.delete(row)
    elif row is None:
        session.add(AliasRow(adapter_id=adapter.id, alias=alias, number=number, updated_by=actor, updated_at=now_ms()))
    else:
        row.number, row.updated_by, row.updated_at = number, actor, now_ms()


def _describe(session: Session, adapter: AdapterRow, number: int) -> None:
    """What lists say of an adapter is what its champion says of itself."""
    mine = (VersionRow.adapter_id == adapter.id, VersionRow.number == number)
    own = (session.scalar(select(VersionRow.contract).where(*mine)) or {}).get("description")
    adapter.description = own or adapter.description


def _expect(session: Session, adapter: AdapterRow, alias: str, expect: int | None) -> None:
    if expect is None:
        return
    row = session.get(AliasRow, (adapter.id, alias))
    found = row.number if row else ABSENT
    if found != expect:
        now = f"points at {adapter.name}:{found}" if found else "does not exist"
        raise Conflict(
            f"{adapter.name}@{alias} {now}, not as expected at {expect}: somebody moved it.",
            code="alias_moved",
            hint=f"umbel alias history {adapter.name}, then decide again",
        )


def _servable(row: VersionRow, ref: AdapterRef) -> int:
    """A yanked version is refused even by its digest: an alias would bring it back to everybody."""
    lookup.refuse_unservable(AdapterRef(ref.name, row.number), row.number, row.digest, row.state, row.reason)
    return row.number


def _nothing_before(name: str, alias: str, trail: Trail) -> Conflict:
    """Says where the alias stands, what of its past cannot answer, and how to name a version instead."""
    now = trail[-1] if trail else None
    where = f"is at {name}:{now}" if now is not None else "is nowhere"
    gone = dict.fromkeys(f"{name}:{number}" for number in trail[:-1] if number not in (None, now))
    before = f"what it was before ({', '.join(gone)}) answers no more" if gone else "nothing is before that"
    to = f"umbel promote {name}:NUMBER" if alias == CHAMPION else f"umbel alias set {name}:NUMBER {alias}"
    return Conflict(
        f"{name}@{alias} {where}, and {before}.",
        code="nothing_to_roll_back",
        hint=f"name the version: {to}; umbel adapters show {name} lists them",
    )
