"""What adapters are made from: backbones and datasets."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from umbel.registry.models.base import Base, BigInt, DigestStr, JsonMap, LongText, NameStr, UtcMs, WordStr


class BackboneRow(Base):
    __tablename__ = "backbones"

    name: Mapped[NameStr] = mapped_column(ForeignKey("names.name"), primary_key=True)
    fingerprint: Mapped[DigestStr] = mapped_column(unique=True, comment="sha256 over config and tensors")
    source: Mapped[LongText]
    licence: Mapped[LongText | None]
    config: Mapped[JsonMap]
    tokenizer_sha: Mapped[DigestStr | None]
    chat_template_sha: Mapped[DigestStr | None]
    parent: Mapped[DigestStr | None] = mapped_column(comment="fingerprint that this one was converted from")
    created_at: Mapped[UtcMs]


class DatasetRow(Base):
    """Known by content; a name may have had several contents, and means the newest."""

    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[NameStr] = mapped_column(index=True)
    digest: Mapped[DigestStr] = mapped_column(unique=True)
    form: Mapped[WordStr]
    rows: Mapped[BigInt]
    bytes: Mapped[BigInt]
    splits: Mapped[JsonMap]
    report: Mapped[JsonMap] = mapped_column(comment="what validation found")
    source: Mapped[LongText | None]
    licence: Mapped[LongText | None]
    created_at: Mapped[UtcMs]
