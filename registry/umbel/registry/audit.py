"""Who did what. Written in the transaction that did it, so neither exists without the other."""

import getpass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.registry.database import Database
from umbel.registry.models import AuditRow
from umbel.registry.records import AuditEntry


def who(actor: str | None) -> str:
    """The actor as given, or the user who runs this process."""
    if actor:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def note(session: Session, actor: str, action: str, target: str, **detail: Any) -> None:
    session.add(AuditRow(actor=actor, action=action, target=target[:255], detail=detail, at=now_ms()))


class Audit:
    """Reads the log; nothing edits it."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def list(self, *, target: str | None = None, before: int | None = None, limit: int = 100) -> list[AuditEntry]:
        """Newest first. ``before`` is the id of the last entry already seen."""
        statement = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if target is not None:
            statement = statement.where(AuditRow.target == target)
        if before is not None:
            statement = statement.where(AuditRow.id < before)
        with self.database.read() as session:
            return [_entry(row) for row in session.scalars(statement)]


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(id=row.id, actor=row.actor, action=row.action, target=row.target, detail=row.detail, at=row.at)
