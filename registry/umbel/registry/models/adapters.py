"""Adapters, their versions, and the names, aliases and tags that lead to them."""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from umbel.core.contract import OutputHead
from umbel.registry.models.base import Base, BigInt, DigestStr, JsonMap, LongText, NameStr, Real, UtcMs, WordStr, one_of
from umbel.registry.records import VersionState

_DIGEST_SHAPE = "length({0}) = 71 AND {0} LIKE 'sha256:%'"


class NameRow(Base):
    """The one name space of what ``model`` may say: adapters, backbones and experiments."""

    __tablename__ = "names"
    __table_args__ = (one_of("kind", ("adapter", "backbone", "experiment")),)

    name: Mapped[NameStr] = mapped_column(primary_key=True)
    kind: Mapped[WordStr]


class AdapterRow(Base):
    """A task. Its row is locked while a version number is given out."""

    __tablename__ = "adapters"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[NameStr] = mapped_column(ForeignKey("names.name"), unique=True)
    description: Mapped[LongText]
    backbone: Mapped[DigestStr] = mapped_column(index=True, comment="that of its newest version; all share a root")
    last_number: Mapped[int] = mapped_column(comment="highest version number ever given")
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]
    removed_at: Mapped[UtcMs | None] = mapped_column(comment="set while every version is deleted")

    versions: Mapped[list["VersionRow"]] = relationship(back_populates="adapter", lazy="raise")
    aliases: Mapped[list["AliasRow"]] = relationship(lazy="raise", viewonly=True, order_by="AliasRow.alias")
    tags: Mapped[list["TagRow"]] = relationship(lazy="raise", viewonly=True, order_by="TagRow.key")

    __table_args__ = (Index(None, "created_at", "id"),)


class VersionRow(Base):
    """One immutable upload of an adapter. Rows are added and retired, never edited: a trigger keeps it so."""

    __tablename__ = "adapter_versions"

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int] = mapped_column(comment="counts up from 1 inside one adapter")
    digest: Mapped[DigestStr] = mapped_column(index=True, comment="sha256 of the canonical manifest")
    weights_sha256: Mapped[DigestStr]
    method: Mapped[WordStr]
    output_head: Mapped[WordStr]
    backbone: Mapped[DigestStr] = mapped_column(comment="fingerprint as the manifest has it")
    config: Mapped[JsonMap]
    contract: Mapped[JsonMap]
    state: Mapped[WordStr]
    reason: Mapped[LongText | None] = mapped_column(comment="why it is in this state")
    state_at: Mapped[UtcMs] = mapped_column(comment="when it came into this state")
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("adapter_versions.id"), index=True)
    dataset: Mapped[DigestStr | None] = mapped_column(index=True, comment="digest; the data need not be registered")
    seed: Mapped[BigInt | None]
    n_params: Mapped[BigInt | None]
    bytes: Mapped[BigInt] = mapped_column(comment="of all files of the manifest")
    card: Mapped[LongText | None] = mapped_column(comment="README.md, beside the digest and not in it")
    code_version: Mapped[LongText | None]
    created_by: Mapped[LongText]
    created_at: Mapped[UtcMs]

    adapter: Mapped[AdapterRow] = relationship(back_populates="versions", lazy="raise")
    parent: Mapped["VersionRow | None"] = relationship(remote_side=[id], lazy="raise")
    files: Mapped[list["VersionFileRow"]] = relationship(lazy="raise", order_by="VersionFileRow.path")
    metrics: Mapped[list["VersionMetricRow"]] = relationship(lazy="raise")
    aliases: Mapped[list["AliasRow"]] = relationship(lazy="raise", viewonly=True, order_by="AliasRow.alias")

    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),  # two publishers racing: one must lose
        UniqueConstraint("adapter_id", "digest"),  # publishing twice is one version
        one_of("state", VersionState),
        one_of("output_head", OutputHead),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint(_DIGEST_SHAPE.format("digest"), name="digest"),
    )


class BlobRow(Base):
    """One file of the store, named by its content. Its row is locked while the file is linked or unlinked."""

    __tablename__ = "blobs"
    __table_args__ = (
        one_of("state", ("present", "quarantined")),
        CheckConstraint(_DIGEST_SHAPE.format("digest"), name="digest"),
        CheckConstraint("bytes > 0", name="bytes"),
    )

    digest: Mapped[DigestStr] = mapped_column(primary_key=True)
    bytes: Mapped[BigInt]
    state: Mapped[WordStr]
    created_at: Mapped[UtcMs]
    verified_at: Mapped[UtcMs | None] = mapped_column(comment="when its bytes were last hashed and right")


class VersionFileRow(Base):
    __tablename__ = "version_files"

    version_id: Mapped[int] = mapped_column(ForeignKey("adapter_versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[DigestStr] = mapped_column(ForeignKey("blobs.digest", ondelete="RESTRICT"), index=True)
    bytes: Mapped[BigInt]


class VersionMetricRow(Base):
    """Final numbers of a version, one row each so that lists can filter and sort by any of them."""

    __tablename__ = "version_metrics"
    __table_args__ = (Index(None, "key", "value"),)

    version_id: Mapped[int] = mapped_column(ForeignKey("adapter_versions.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[Real]


class AliasRow(Base):
    """A movable name. The foreign key is composite, so an alias can never dangle or cross adapters."""

    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["adapter_id", "number"], ["adapter_versions.adapter_id", "adapter_versions.number"], ondelete="RESTRICT"
        ),
        Index(None, "adapter_id", "number"),
    )

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    alias: Mapped[NameStr] = mapped_column(primary_key=True)
    number: Mapped[int]
    updated_by: Mapped[LongText]
    updated_at: Mapped[UtcMs]


class AliasEventRow(Base):
    """Append-only: a trigger refuses updates and deletes."""

    __tablename__ = "alias_events"
    __table_args__ = (one_of("kind", ("set", "rollback", "remove")), Index(None, "adapter_id", "alias", "id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[NameStr]
    kind: Mapped[WordStr]
    origin: Mapped[int | None] = mapped_column(comment="version number before; null where the alias was made")
    target: Mapped[int | None] = mapped_column(comment="version number after; null where it was removed")
    actor: Mapped[LongText]
    reason: Mapped[LongText | None]
    evidence: Mapped[LongText | None] = mapped_column(comment="id of an evaluation or experiment")
    at: Mapped[UtcMs]


class TagRow(Base):
    __tablename__ = "tags"
    __table_args__ = (Index(None, "key", "value"),)

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))
