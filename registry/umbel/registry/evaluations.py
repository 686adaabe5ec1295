"""Evaluations: what a version scored on a suite, as a summary and item by item."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session, joinedload

from umbel.core.clock import new_id, now_ms
from umbel.core.digests import digest_json
from umbel.core.errors import NotFound
from umbel.core.names import AdapterRef
from umbel.registry import lookup
from umbel.registry.audit import who
from umbel.registry.convert import version_ref
from umbel.registry.database import Database
from umbel.registry.draft import check_metrics
from umbel.registry.models import AdapterRow, EvalItemRow, EvaluationRow, VersionRow
from umbel.registry.records import EvalItem, Evaluation

_WITH = joinedload(EvaluationRow.version).joinedload(VersionRow.adapter)


class Evaluations:
    def __init__(self, database: Database) -> None:
        self.database = database

    def save(
        self,
        ref: str,
        *,
        suite: str,
        summary: Mapping[str, float],
        items: Iterable[EvalItem],
        params: Mapping[str, Any] | None = None,
        actor: str | None = None,
    ) -> Evaluation:
        """Keeps an evaluation of the version that ``ref`` names now, all items or none."""
        rows = [_item_values(item) for item in items]
        check_metrics(summary)
        with self.database.write() as session:
            version = lookup.version_row(session, AdapterRef.parse(ref))
            row = EvaluationRow(
                id=new_id("eval"),
                version_id=version.id,
                version=version,
                suite=suite,
                params=dict(params or {}),
                params_digest=digest_json(dict(params or {})),
                summary=dict(summary),
                n_items=len({values["item"] for values in rows}),
                created_by=who(actor),
                created_at=now_ms(),
            )
            session.add(row)
            session.flush()
            if rows:
                session.execute(insert(EvalItemRow), [values | {"evaluation_id": row.id} for values in rows])
            return _evaluation(row)

    def get(self, evaluation: str) -> Evaluation:
        with self.database.read() as session:
            return _evaluation(_row(session, evaluation))

    def list(
        self, *, name: str | None = None, number: int | None = None, suite: str | None = None
    ) -> tuple[Evaluation, ...]:
        """Newest first."""
        statement = select(EvaluationRow).join(VersionRow).join(AdapterRow, VersionRow.adapter_id == AdapterRow.id)
        for column, value in ((AdapterRow.name, name), (VersionRow.number, number), (EvaluationRow.suite, suite)):
            if value is not None:
                statement = statement.where(column == value)
        order = (EvaluationRow.created_at.desc(), EvaluationRow.id.desc())
        with self.database.read() as session:
            return tuple(_evaluation(row) for row in session.scalars(statement.order_by(*order).options(_WITH)))

    def items(self, evaluation: str, *, metric: str | None = None) -> tuple[EvalItem, ...]:
        """By metric and item; both evaluations of a pair come in the same order."""
        statement = select(EvalItemRow).where(EvalItemRow.evaluation_id == evaluation)
        if metric is not None:
            statement = statement.where(EvalItemRow.metric == metric)
        with self.database.read() as session:
            _row(session, evaluation)
            rows = session.scalars(statement).all()
        return tuple(_item(row) for row in sorted(rows, key=lambda row: (row.metric, row.item)))


def _row(session: Session, evaluation: str) -> EvaluationRow:
    row = session.scalar(select(EvaluationRow).where(EvaluationRow.id == evaluation).options(_WITH))
    if row is None:
        raise NotFound(
            f"there is no evaluation {evaluation!r}.", code="evaluation_not_found", hint="umbel adapters show NAME"
        )
    return row


def _item_values(item: EvalItem) -> dict[str, Any]:
    check_metrics({item.metric: item.score})
    return {
        "metric": item.metric,
        "item": item.item,
        "score": item.score,
        "output": item.output,
        "cluster": item.cluster,
    }


def _item(row: EvalItemRow) -> EvalItem:
    return EvalItem(item=row.item, metric=row.metric, score=row.score, output=row.output, cluster=row.cluster)


def _evaluation(row: EvaluationRow) -> Evaluation:
    return Evaluation(
        id=row.id,
        version=version_ref(row.version),
        suite=row.suite,
        params=row.params,
        summary=row.summary,
        n_items=row.n_items,
        created_by=row.created_by,
        created_at=row.created_at,
    )
