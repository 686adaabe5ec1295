"""What speaks for one version over another: evaluations and experiments."""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from umbel.registry.models.adapters import VersionRow
from umbel.registry.models.base import Base, DigestStr, IdStr, JsonMap, LongText, NameStr, Real, UtcMs, WordStr, one_of
from umbel.registry.records import ExperimentStatus


class EvaluationRow(Base):
    __tablename__ = "evaluations"

    id: Mapped[IdStr] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("adapter_versions.id"), index=True)
    suite: Mapped[DigestStr] = mapped_column(comment="digest of the items that were asked")
    params: Mapped[JsonMap] = mapped_column(comment="what else decided the answers, such as decoding")
    params_digest: Mapped[DigestStr]
    summary: Mapped[JsonMap]
    n_items: Mapped[int]
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]

    version: Mapped[VersionRow] = relationship(lazy="raise")

    __table_args__ = (Index(None, "suite", "params_digest"),)


class EvalItemRow(Base):
    """Kept for ever: without per-item scores no paired test is possible later."""

    __tablename__ = "eval_items"

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    item: Mapped[str] = mapped_column(String(255), primary_key=True)
    score: Mapped[Real]
    output: Mapped[LongText | None]
    cluster: Mapped[LongText | None]


class ExperimentRow(Base):
    __tablename__ = "experiments"
    __table_args__ = (one_of("status", ExperimentStatus), Index(None, "status", "id"))

    id: Mapped[IdStr] = mapped_column(primary_key=True)
    name: Mapped[NameStr] = mapped_column(ForeignKey("names.name"), unique=True)
    status: Mapped[WordStr]
    metric: Mapped[str] = mapped_column(String(64), comment="what decides it")
    salt: Mapped[LongText] = mapped_column(comment="makes its split independent of every other experiment's")
    hash_version: Mapped[int]
    config: Mapped[JsonMap]
    decision: Mapped[JsonMap | None]
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]
    stopped_at: Mapped[UtcMs | None]

    arms: Mapped[list["ArmRow"]] = relationship(lazy="raise", order_by="ArmRow.position")


class ArmRow(Base):
    """Pinned to one version: an alias that moves must not change what an experiment compares."""

    __tablename__ = "arms"
    __table_args__ = (CheckConstraint("weight > 0", name="weight"),)

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    name: Mapped[NameStr] = mapped_column(primary_key=True)
    position: Mapped[int]
    version_id: Mapped[int] = mapped_column(ForeignKey("adapter_versions.id", ondelete="RESTRICT"), index=True)
    weight: Mapped[Real]

    version: Mapped[VersionRow] = relationship(lazy="raise")


class ExposureRow(Base):
    """Written before the answer is generated, so an arm that crashes stays in its own denominator."""

    __tablename__ = "exposures"
    __table_args__ = (
        ForeignKeyConstraint(["experiment_id", "arm"], ["arms.experiment_id", "arms.name"]),
        Index(None, "experiment_id", "arm"),
    )

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    unit_hash: Mapped[str] = mapped_column(String(64), primary_key=True, comment="of salt and unit: no user id is kept")
    arm: Mapped[NameStr]
    at: Mapped[UtcMs]


class ExposedRequestRow(Base):
    """Leads feedback that knows only its request to the unit that was exposed."""

    __tablename__ = "exposed_requests"
    __table_args__ = (
        ForeignKeyConstraint(["experiment_id", "unit_hash"], ["exposures.experiment_id", "exposures.unit_hash"]),
        Index(None, "experiment_id", "unit_hash"),
    )

    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    experiment_id: Mapped[IdStr]
    unit_hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[UtcMs]


class OutcomeRow(Base):
    __tablename__ = "outcomes"
    __table_args__ = (
        ForeignKeyConstraint(["experiment_id", "unit_hash"], ["exposures.experiment_id", "exposures.unit_hash"]),
        Index(None, "experiment_id", "metric", "unit_hash"),
    )

    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True, comment="sent twice, counted once")
    experiment_id: Mapped[IdStr]
    unit_hash: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[Real]
    at: Mapped[UtcMs]
