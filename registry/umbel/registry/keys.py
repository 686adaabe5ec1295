"""API keys. A key is shown once; what is kept finds it (prefix) and knows it again (sha256), but cannot make it."""

import hmac
import secrets
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel.core.clock import new_id, now_ms
from umbel.core.digests import digest_bytes
from umbel.core.errors import AuthError, NotAllowed, NotFound, UsageError
from umbel.core.names import check_name, meant
from umbel.registry.audit import note, who
from umbel.registry.database import Database
from umbel.registry.models import ApiKeyRow
from umbel.registry.records import ApiKey, Scope

_MARK = "umbel"
_NOBODY = digest_bytes(b"")
"""What the key of an unknown prefix is compared with, so that it takes as long."""


class Keys:
    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, name: str, scopes: Iterable[Scope | str], *, actor: str | None = None) -> tuple[ApiKey, str]:
        """The record and the secret, which cannot be shown again. The secret has 256 random bits."""
        granted = _scopes(scopes)
        prefix = secrets.token_hex(4)
        secret = f"{_MARK}_{prefix}_{secrets.token_urlsafe(32)}"
        row = ApiKeyRow(
            id=new_id("key"),
            name=check_name(name, "key"),
            prefix=prefix,
            sha256=digest_bytes(secret.encode()),
            scopes=[str(scope) for scope in granted],
            created_by=who(actor),
            created_at=now_ms(),
        )
        with self.database.write() as session:
            session.add(row)
            note(session, who(actor), "key.create", row.id, name=name, scopes=row.scopes)
            return _key(row), secret

    def check(self, secret: str, scope: Scope | None = None) -> ApiKey:
        """Who holds this key. Raises AuthError if nobody does, NotAllowed if it lacks ``scope``."""
        mark, _, rest = secret.partition("_")
        prefix = rest.partition("_")[0] if mark == _MARK else ""
        with self.database.read() as session:
            row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.prefix == prefix))
        same = hmac.compare_digest(digest_bytes(secret.encode()), row.sha256 if row else _NOBODY)
        if row is None or not same or row.revoked_at is not None:
            raise AuthError(
                "the API key is unknown or revoked.", hint="umbel keys create NAME --scope SCOPE makes a new one"
            )
        key = _key(row)
        if scope is not None and not key.may(scope):
            raise NotAllowed(
                f"the key {key.name!r} lacks the scope {scope}.", hint=f"umbel keys create NAME --scope {scope}"
            )
        return key

    def list(self) -> tuple[ApiKey, ...]:
        with self.database.read() as session:
            return tuple(_key(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.id)))

    def revoke(self, key: str, *, actor: str | None = None) -> ApiKey:
        """By id or prefix, or by a name that one key has; at once and for good."""
        with self.database.write() as session:
            row = _find(session, key)
            row.revoked_at = row.revoked_at or now_ms()
            note(session, who(actor), "key.revoke", row.id, name=row.name)
            return _key(row)


def _find(session: Session, key: str) -> ApiKeyRow:
    """Raises NotFound, and UsageError (``ambiguous_key``) for a name that several keys have which still open."""
    row = session.scalar(select(ApiKeyRow).where((ApiKeyRow.id == key) | (ApiKeyRow.prefix == key)))
    if row is not None:
        return row
    called = session.scalars(select(ApiKeyRow).where(ApiKeyRow.name == key).order_by(ApiKeyRow.id)).all()
    if not called:
        near = meant(key, session.scalars(select(ApiKeyRow.name)))
        raise NotFound(f"there is no key {key!r}.", code="key_not_found", hint=f"{near}umbel keys list")
    called = [row for row in called if row.revoked_at is None] or called
    if len(called) > 1:
        listed = ", ".join(row.id for row in called)
        raise UsageError(
            f"{len(called)} keys are called {key!r}.", code="ambiguous_key", hint=f"say which by its id: {listed}"
        )
    return called[0]


def _scopes(scopes: Iterable[Scope | str]) -> list[Scope]:
    asked = [str(scope) for scope in scopes]
    try:
        granted = sorted({Scope(scope) for scope in asked})
    except ValueError as error:
        wrong = next(scope for scope in asked if scope not in list(Scope))
        raise UsageError(
            f"there is no scope {wrong!r}.",
            code="invalid_scope",
            hint=f"{meant(wrong, Scope)}scopes are {', '.join(Scope)}",
        ) from error
    if not granted:
        raise UsageError(
            "a key without a scope may do nothing.", code="invalid_scope", hint=f"scopes are {', '.join(Scope)}"
        )
    return granted


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        created_by=row.created_by,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
