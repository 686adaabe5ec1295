"""Adapters as a list to look through: search, filter, sort and page; and taking a whole one away."""

from collections.abc import Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.orm import selectinload

from umbel.core.clock import now_ms
from umbel.registry import convert, lookup
from umbel.registry.aliases import move
from umbel.registry.audit import note, who
from umbel.registry.convert import LOADED
from umbel.registry.database import Database
from umbel.registry.models import AdapterRow, AliasRow, VersionRow
from umbel.registry.query import AdapterQuery
from umbel.registry.records import Adapter, Page, VersionState
from umbel.registry.versions import refuse_in_use, retire

_WITH = (selectinload(AdapterRow.aliases), selectinload(AdapterRow.tags), *LOADED)


class Adapters:
    def __init__(self, database: Database) -> None:
        self.database = database

    def list(self, query: AdapterQuery | None = None, *, limit: int = 50, cursor: str | None = None) -> Page[Adapter]:
        """A fixed number of queries, whatever the page's size."""
        query = query or AdapterQuery()
        keys = query.keyset()
        statement = keys.page(query.statement(), limit, cursor).options(*_WITH)
        with self.database.read() as session:
            rows = session.execute(statement).all()
            items = tuple(_adapter(adapter, version, latest) for adapter, version, _, latest in rows[:limit])
            return Page(items, keys.next(rows, limit, lambda row: (row[2], row[0].id)))

    def count(self, query: AdapterQuery | None = None) -> int:
        found = (query or AdapterQuery()).statement().with_only_columns(AdapterRow.id).subquery()
        with self.database.read() as session:
            return session.execute(select(func.count()).select_from(found)).scalar_one()

    def names(self) -> Sequence[str]:
        """Of all that there are, in order."""
        statement = select(AdapterRow.name).where(AdapterRow.removed_at.is_(None)).order_by(AdapterRow.name)
        with self.database.read() as session:
            return session.scalars(statement).all()

    def get(self, name: str) -> Adapter:
        statement = AdapterQuery().statement().where(AdapterRow.name == name).options(*_WITH)
        with self.database.read() as session:
            found = session.execute(statement).one_or_none()
            if found is None:
                lookup.adapter_row(session, name)
                raise lookup.removed(name)
            return _adapter(found[0], found[1], found[3])

    def describe(self, name: str, description: str, *, actor: str | None = None) -> Adapter:
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            note(session, who(actor), "describe", name, before=adapter.description, after=description)
            adapter.description = description
        return self.get(name)

    def remove(self, name: str, *, reason: str | None = None, actor: str | None = None) -> None:
        """Deletes every version and alias. Raises Conflict (``version_in_use``) while an experiment needs one.

        The history stays, and so do the numbers: published again, the adapter counts on from the last one.
        """
        by = who(actor)
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            for alias in session.scalars(select(AliasRow.alias).where(AliasRow.adapter_id == adapter.id)).all():
                move(session, adapter, alias, None, kind="remove", actor=by, reason=reason)
            for row in session.scalars(_live(adapter)).all():
                refuse_in_use(session, row, aliases=False)
                retire(session, row, VersionState.DELETED, reason, by)
            adapter.removed_at = now_ms()
            note(session, by, "remove", name, reason=reason)


def _live(adapter: AdapterRow) -> Select[VersionRow]:
    live = (VersionRow.adapter_id == adapter.id) & (VersionRow.state != VersionState.DELETED)
    return select(VersionRow).where(live).options(*LOADED)


def _adapter(row: AdapterRow, shown: VersionRow | None, latest: int | None) -> Adapter:
    return Adapter(
        name=row.name,
        description=row.description,
        backbone=shown.backbone if shown else row.backbone,
        aliases={alias.alias: alias.number for alias in row.aliases},
        tags={tag.key: tag.value for tag in row.tags},
        last_number=row.last_number,
        latest=latest,
        shown=convert.version(shown) if shown else None,
        created_by=row.created_by,
        created_at=row.created_at,
    )
