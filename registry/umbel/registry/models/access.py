"""Who may do what, who did what, and which request came before."""

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from umbel.registry.models.base import Base, DigestStr, IdStr, JsonMap, LongText, NameStr, UtcMs


class ApiKeyRow(Base):
    """The secret is shown once and never stored."""

    __tablename__ = "api_keys"

    id: Mapped[IdStr] = mapped_column(primary_key=True)
    name: Mapped[NameStr]
    prefix: Mapped[str] = mapped_column(String(16), unique=True, comment="finds the row; no secret")
    sha256: Mapped[DigestStr] = mapped_column(comment="of the whole key")
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]
    revoked_at: Mapped[UtcMs | None]


class AuditRow(Base):
    """Append-only: a trigger refuses updates and deletes."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "target", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    actor: Mapped[LongText]
    action: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(255))
    detail: Mapped[JsonMap]
    at: Mapped[UtcMs]


class IdempotencyRow(Base):
    """The answer to a request, so that its repetition is answered and not done again."""

    __tablename__ = "idempotency_keys"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True, comment="whose key it is, such as an api key's id")
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request: Mapped[DigestStr] = mapped_column(comment="digest of the request; another one is refused")
    status: Mapped[int]
    body: Mapped[JsonMap]
    at: Mapped[UtcMs] = mapped_column(index=True)
