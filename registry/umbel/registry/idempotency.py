"""Requests that come twice: the second gets the answer of the first instead of being done again."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.errors import Conflict
from umbel.registry.database import Database
from umbel.registry.models import IdempotencyRow
from umbel.registry.records import StoredReply

KEEP_MS = 24 * 3600 * 1000
"""Later than this, the same key is a new request."""


class Idempotency:
    def __init__(self, database: Database) -> None:
        self.database = database

    def recall(self, scope: str, key: str, request: str) -> StoredReply | None:
        """The answer given before. ``request`` is a digest of the body; another body under the same key is a Conflict
        (``idempotency_mismatch``)."""
        with self.database.read() as session:
            row = session.get(IdempotencyRow, (scope, key))
            if row is None or row.at < now_ms() - KEEP_MS:
                return None
            return _reply(row, request)

    def remember(self, scope: str, key: str, request: str, *, status: int, body: Mapping[str, Any]) -> StoredReply:
        """Keeps an answer; of two that race, the first stands and is returned to both."""
        return self.database.transact(lambda session: _keep(session, scope, key, request, status, dict(body)))


def _keep(session: Session, scope: str, key: str, request: str, status: int, body: dict[str, Any]) -> StoredReply:
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.at < now_ms() - KEEP_MS))
    row = session.get(IdempotencyRow, (scope, key))
    if row is None:
        row = IdempotencyRow(scope=scope, key=key, request=request, status=status, body=body, at=now_ms())
        session.add(row)
        session.flush()
    return _reply(row, request)


def _reply(row: IdempotencyRow, request: str) -> StoredReply:
    if row.request != request:
        raise Conflict(
            f"the idempotency key {row.key!r} was used for another request.",
            code="idempotency_mismatch",
            hint="send a new key with a new request",
        )
    return StoredReply(row.status, row.body)
