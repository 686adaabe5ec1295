"""Training runs: what they are asked to do, and what they say while they do it."""

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from umbel.registry.models.base import Base, BigInt, IdStr, JsonMap, LongText, NameStr, Real, UtcMs, WordStr, one_of
from umbel.registry.records import RunStatus


class RunRow(Base):
    __tablename__ = "runs"
    __table_args__ = (one_of("status", RunStatus), Index(None, "status", "id"))

    id: Mapped[IdStr] = mapped_column(primary_key=True)
    name: Mapped[NameStr] = mapped_column(index=True, comment="adapter that it trains")
    status: Mapped[WordStr]
    params: Mapped[JsonMap]
    seed: Mapped[BigInt]
    attempt: Mapped[int] = mapped_column(comment="counts the workers that have taken it")
    lease_owner: Mapped[LongText | None]
    heartbeat_at: Mapped[UtcMs | None] = mapped_column(comment="last sign of life of the owner")
    cancel_requested: Mapped[bool]
    error: Mapped[LongText | None]
    summary: Mapped[JsonMap | None]
    last_seq: Mapped[int] = mapped_column(comment="seq of the newest event")
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]
    started_at: Mapped[UtcMs | None]
    finished_at: Mapped[UtcMs | None]


class RunEventRow(Base):
    __tablename__ = "run_events"
    __table_args__ = (one_of("level", ("debug", "info", "warning", "error")),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, comment="counts up from 1 without a gap")
    level: Mapped[WordStr]
    message: Mapped[LongText]
    data: Mapped[JsonMap | None]
    at: Mapped[UtcMs]


class MetricPointRow(Base):
    __tablename__ = "metric_points"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[BigInt] = mapped_column(primary_key=True)
    value: Mapped[Real | None] = mapped_column(comment="null for NaN and infinities, which SQL cannot order")
