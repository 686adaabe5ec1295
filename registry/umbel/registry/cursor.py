"""Keyset paging: a cursor says after which row to go on, so rows that come or go meanwhile move no page.

Every list ends its order with a unique column; what has no value in the ordered column comes last.
"""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import ColumnElement, Select, and_, or_, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from umbel.core.digests import digest_bytes
from umbel.core.errors import UsageError

Ts = TypeVarTuple("Ts")
Row = TypeVar("Row")
Column = ColumnElement[Any] | InstrumentedAttribute[Any]

MAX_LIMIT = 1000


class Keyset:
    """An order by ``column``, then by the unique ``tie``. ``query`` is all that a cursor must not outlive."""

    def __init__(
        self, query: str, column: Column, tie: Column, *, descending: bool = False, nullable: bool = False
    ) -> None:
        self.column, self.tie = column, tie
        self.descending, self.nullable = descending, nullable
        self.mark = digest_bytes(f"{query} {column} {descending}".encode())[7:15]

    def page(self, statement: Select[*Ts], limit: int, cursor: str | None) -> Select[*Ts]:
        """One row more than the page holds, which tells whether another page follows."""
        if not 1 <= limit <= MAX_LIMIT:
            raise UsageError(f"limit must be 1 to {MAX_LIMIT}, got {limit}.", code="invalid_limit", param="limit")
        if cursor is not None:
            statement = statement.where(self._after(*self._read(cursor)))
        order = [key.desc() if self.descending else key.asc() for key in (self.column, self.tie)]
        if self.nullable:
            order.insert(0, self.column.is_(None).asc())
        return statement.order_by(*order).limit(limit + 1)

    def next(self, rows: Sequence[Row], limit: int, keys: Callable[[Row], tuple[Any, Any]]) -> str | None:
        """``keys``: the values of column and tie of a row."""
        if len(rows) <= limit:
            return None
        text = json.dumps([self.mark, *keys(rows[limit - 1])])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _after(self, value: Any, tie: Any) -> ColumnElement[bool]:
        beyond = self.tie < tie if self.descending else self.tie > tie
        if value is None:
            return and_(self.column.is_(None), beyond)
        keys, last = tuple_(self.column, self.tie), tuple_(value, tie)
        further = keys < last if self.descending else keys > last
        return or_(further, self.column.is_(None)) if self.nullable else further

    def _read(self, cursor: str) -> tuple[Any, Any]:
        try:
            mark, value, tie = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        except ValueError:
            mark = value = tie = None
        if mark != self.mark or not isinstance(value, str | int | float | None):
            raise UsageError(
                "the cursor is not one of this list.",
                code="invalid_cursor",
                hint="give it back as it came, with the same filters and order",
                param="cursor",
            )
        return value, tie
