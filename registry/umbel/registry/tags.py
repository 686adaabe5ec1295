"""Tags: words that people put on adapters to find them again."""

from collections.abc import Iterable, Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from umbel.core.errors import UsageError
from umbel.registry import lookup
from umbel.registry.audit import note, who
from umbel.registry.database import Database, upsert
from umbel.registry.models import AdapterRow, TagRow

MAX_TAGS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""OpenAI's limits for ``metadata``."""


class Tags:
    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, name: str) -> Mapping[str, str]:
        with self.database.read() as session:
            return _tags(session, lookup.adapter_row(session, name))

    def set(self, name: str, tags: Mapping[str, str], *, actor: str | None = None) -> Mapping[str, str]:
        """Adds or replaces these tags and leaves the others; returns all."""
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            put_tags(session, adapter, tags)
            note(session, who(actor), "tag", name, set=dict(tags))
            return _tags(session, adapter)

    def remove(self, name: str, keys: Iterable[str], *, actor: str | None = None) -> Mapping[str, str]:
        """Keys that are not there are no error; returns what is left."""
        gone = sorted(keys)
        with self.database.write() as session:
            adapter = lookup.adapter_row(session, name, lock=True)
            session.execute(delete(TagRow).where(TagRow.adapter_id == adapter.id, TagRow.key.in_(gone)))
            note(session, who(actor), "tag", name, removed=gone)
            return _tags(session, adapter)


def put_tags(session: Session, adapter: AdapterRow, tags: Mapping[str, str]) -> None:
    for key, value in sorted(tags.items()):
        if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise UsageError(
                f"tag {key!r} is too long.",
                code="invalid_tag",
                hint=f"keys of 1 to {MAX_KEY} characters, values of at most {MAX_VALUE}",
            )
        upsert(session, TagRow, {"adapter_id": adapter.id, "key": key, "value": value})
    counted = select(func.count()).select_from(TagRow).where(TagRow.adapter_id == adapter.id)
    if tags and session.execute(counted).scalar_one() > MAX_TAGS:
        raise UsageError(
            f"{adapter.name!r} would have more than {MAX_TAGS} tags.", code="too_many_tags", hint="remove some first"
        )


def _tags(session: Session, adapter: AdapterRow) -> dict[str, str]:
    rows = session.scalars(select(TagRow).where(TagRow.adapter_id == adapter.id).order_by(TagRow.key))
    return {row.key: row.value for row in rows}
