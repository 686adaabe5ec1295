"""Where an alias was before, read from the record of its moves."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel.registry.models import AdapterRow, AliasEventRow, VersionRow
from umbel.registry.records import SERVABLE

Trail = Sequence[int | None]
"""Numbers of versions, the present one last; None where the alias was removed."""


def events_of(session: Session, adapter: AdapterRow, alias: str | None) -> Sequence[AliasEventRow]:
    statement = select(AliasEventRow).where(AliasEventRow.adapter_id == adapter.id).order_by(AliasEventRow.id)
    if alias is not None:
        statement = statement.where(AliasEventRow.alias == alias)
    return session.scalars(statement).all()


def trail_of(session: Session, adapter: AdapterRow, alias: str) -> Trail:
    """A stack: a set pushes, a rollback pops, so that rolling back twice goes back twice."""
    trail: list[int | None] = []
    for event in events_of(session, adapter, alias):
        if event.kind == "rollback":
            while trail and trail[-1] != event.target:
                trail.pop()
        else:
            trail.append(event.target)
    return trail


def before(session: Session, adapter: AdapterRow, trail: Trail) -> int | None:
    """The version that a rollback goes back to: the last other one that may still answer."""
    servable = VersionRow.adapter_id == adapter.id, VersionRow.state.in_(SERVABLE)
    usable = set(session.scalars(select(VersionRow.number).where(*servable)))
    return next((number for number in reversed(trail[:-1]) if number in usable and number != trail[-1]), None)
