"""What all tables share: the naming convention, the column types and the checks."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Double, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Every constraint has a name that a migration can drop, on both databases."""

# PostgreSQL would sort names by the locale of its cluster; "C" sorts them as SQLite and Python do.
_NAME = String(63).with_variant(String(63, collation="C"), "postgresql")

NameStr = Annotated[str, mapped_column(_NAME)]
IdStr = Annotated[str, mapped_column(String(40))]
"""A prefix and a ULID, such as ``run-01k9...``."""
DigestStr = Annotated[str, mapped_column(String(71))]
"""``sha256:`` and 64 hex digits."""
WordStr = Annotated[str, mapped_column(String(32))]
LongText = Annotated[str, mapped_column(Text)]
UtcMs = Annotated[int, mapped_column(BigInteger)]
"""UTC in whole milliseconds since 1970."""
BigInt = Annotated[int, mapped_column(BigInteger)]
Real = Annotated[float, mapped_column(Double)]
JsonMap = Annotated[dict[str, Any], mapped_column(JSON(none_as_null=True))]


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


def one_of(column: str, words: type[StrEnum] | Iterable[str]) -> CheckConstraint:
    """A closed set of words as a check, so that adding one is a migration that both databases can do."""
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)
