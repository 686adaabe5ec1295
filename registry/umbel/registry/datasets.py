"""Datasets that this home knows. A name may have had several contents and means the newest one."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import or_, select

from umbel.core.clock import now_ms
from umbel.core.errors import NotFound
from umbel.core.names import check_name
from umbel.registry.database import Database
from umbel.registry.models import DatasetRow
from umbel.registry.records import Dataset


class Datasets:
    def __init__(self, database: Database) -> None:
        self.database = database

    def register(
        self,
        *,
        name: str,
        digest: str,
        form: str,
        rows: int,
        bytes: int,
        splits: Mapping[str, int] | None = None,
        report: Mapping[str, Any] | None = None,
        source: str | None = None,
        licence: str | None = None,
    ) -> Dataset:
        """The same content again, under whatever name, is a no-op that returns what is known."""
        values = {"form": form, "rows": rows, "bytes": bytes, "source": source, "licence": licence}
        check_name(name, "dataset")
        with self.database.write() as session:
            row = session.scalar(select(DatasetRow).where(DatasetRow.digest == digest))
            if row is None:
                row = DatasetRow(name=name, digest=digest, created_at=now_ms(), **values)
                row.splits, row.report = dict(splits or {}), dict(report or {})
                session.add(row)
                session.flush()
            return _dataset(row)

    def get(self, name_or_digest: str) -> Dataset:
        either = or_(DatasetRow.name == name_or_digest, DatasetRow.digest == name_or_digest)
        with self.database.read() as session:
            row = session.scalar(select(DatasetRow).where(either).order_by(DatasetRow.id.desc()).limit(1))
            if row is None:
                raise NotFound(
                    f"there is no dataset {name_or_digest!r}.",
                    code="dataset_not_found",
                    hint="umbel datasets list; umbel pull dataset brings one",
                )
            return _dataset(row)

    def list(self) -> tuple[Dataset, ...]:
        with self.database.read() as session:
            rows = session.scalars(select(DatasetRow).order_by(DatasetRow.name, DatasetRow.id))
            return tuple(_dataset(row) for row in rows)

    def remove(self, name: str) -> None:
        """Forgets every content of the name; versions keep the digest that they were trained on."""
        self.get(name)
        with self.database.write() as session:
            for row in session.scalars(select(DatasetRow).where(DatasetRow.name == name)).all():
                session.delete(row)


def _dataset(row: DatasetRow) -> Dataset:
    return Dataset(
        name=row.name,
        digest=row.digest,
        form=row.form,
        rows=row.rows,
        bytes=row.bytes,
        splits=row.splits,
        report=row.report,
        source=row.source,
        licence=row.licence,
        created_at=row.created_at,
    )
