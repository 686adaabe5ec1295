"""What a list of adapters may be asked for, and the one statement that answers it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from operator import ge, gt, le, lt
from typing import Any, Self, TypeVarTuple

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, exists, func, or_, select
from sqlalchemy.orm import aliased

from umbel.core.contract import OutputHead
from umbel.core.errors import UsageError
from umbel.core.names import CHAMPION
from umbel.registry.cursor import Column, Keyset
from umbel.registry.models import AdapterRow, AliasRow, TagRow, VersionMetricRow, VersionRow
from umbel.registry.records import SERVABLE, VersionState

Ts = TypeVarTuple("Ts")

_COMPARISONS = {">=": ge, "<=": le, ">": gt, "<": lt}
_RANGE = re.compile(r"\s*([^<>=\s]{1,64})\s*(>=|<=|>|<)\s*(\S+)\s*")

_alias = aliased(AliasRow)
_ordered = aliased(VersionMetricRow)


@dataclass(frozen=True, slots=True)
class MetricRange:
    """A bound on a metric, such as ``accuracy >= 0.8``."""

    key: str
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        match = _RANGE.fullmatch(text)
        try:
            if match:
                return cls(match[1], match[2], float(match[3]))
        except ValueError:
            pass
        raise UsageError(f"{text!r} is no bound on a metric.", code="invalid_metric_range", hint="accuracy>=0.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """Filters hold together. Those on a version look at the version that the list shows."""

    search: str | None = None
    """Part of a name, a description or a tag, in any case."""
    method: str | None = None
    output_head: OutputHead | None = None
    state: VersionState | None = None
    backbone: str | None = None
    """A fingerprint."""
    alias: str | None = None
    """Only adapters that have it, shown by the version that it points at."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[MetricRange, ...] = ()
    sort: str = "name"
    """``name``, ``created``, ``bytes`` or ``metric:KEY``; adapters without a value come last."""
    descending: bool = False

    def keyset(self) -> Keyset:
        column, nullable = self._order()
        return Keyset(f"adapters {asdict(self)}", column, AdapterRow.id, descending=self.descending, nullable=nullable)

    def statement(self) -> Select[AdapterRow, VersionRow, Any, int | None]:
        """Adapter, shown version (or None), the value that the order goes by, and the number of ``latest``."""
        latest = _newest(*SERVABLE)
        statement = _shown(select(AdapterRow, VersionRow, self._order()[0], latest), self.alias)
        if self.sort.startswith("metric:"):
            key = self.sort.removeprefix("metric:")
            statement = statement.outerjoin(_ordered, and_(_ordered.version_id == VersionRow.id, _ordered.key == key))
        return statement.where(AdapterRow.removed_at.is_(None), *self._filters())

    def _order(self) -> tuple[Column, bool]:
        plain = {"name": AdapterRow.name, "created": AdapterRow.created_at}
        if self.sort in plain:
            return plain[self.sort], False
        if self.sort == "bytes":
            return VersionRow.bytes, True
        if self.sort.startswith("metric:"):
            return _ordered.value, True
        raise UsageError(
            f"adapters cannot be sorted by {self.sort!r}.",
            code="invalid_sort",
            hint="name, created, bytes or metric:accuracy",
            param="sort",
        )

    def _filters(self) -> list[ColumnElement[bool]]:
        equal = {
            VersionRow.method: self.method,
            VersionRow.output_head: self.output_head,
            VersionRow.state: self.state,
            VersionRow.backbone: self.backbone,
        }
        filters: list[ColumnElement[bool]] = [column == value for column, value in equal.items() if value is not None]
        filters += [_tagged(TagRow.key == key, TagRow.value == value) for key, value in self.tags.items()]
        filters += [_measured(bound) for bound in self.metrics]
        if self.search:
            filters.append(_mentions(self.search))
        return filters


def _shown(statement: Select[*Ts], alias: str | None) -> Select[*Ts]:
    pointing = and_(_alias.adapter_id == AdapterRow.id, _alias.alias == (alias or CHAMPION))
    statement = statement.select_from(AdapterRow).join(_alias, pointing, isouter=alias is None)
    number = func.coalesce(_alias.number, _newest(*(state for state in VersionState if state != VersionState.DELETED)))
    return statement.outerjoin(VersionRow, and_(VersionRow.adapter_id == AdapterRow.id, VersionRow.number == number))


def _newest(*states: VersionState) -> ScalarSelect[int | None]:
    """Number of an adapter's newest version in one of these states."""
    other = aliased(VersionRow)
    mine = (other.adapter_id == AdapterRow.id, other.state.in_(states))
    return select(func.max(other.number)).where(*mine).correlate(AdapterRow).scalar_subquery()


def _mentions(text: str) -> ColumnElement[bool]:
    return or_(
        AdapterRow.name.icontains(text, autoescape=True),
        AdapterRow.description.icontains(text, autoescape=True),
        _tagged(or_(TagRow.key.icontains(text, autoescape=True), TagRow.value.icontains(text, autoescape=True))),
    )


def _tagged(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(TagRow.adapter_id == AdapterRow.id, *conditions)


def _measured(bound: MetricRange) -> ColumnElement[bool]:
    within = _COMPARISONS[bound.comparison](VersionMetricRow.value, bound.value)
    return exists().where(VersionMetricRow.version_id == VersionRow.id, VersionMetricRow.key == bound.key, within)
