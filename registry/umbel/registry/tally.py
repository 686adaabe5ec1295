"""Counting an experiment in the database: units, not requests, since requests of one unit are not independent."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from umbel.registry.models import ExposureRow, OutcomeRow
from umbel.registry.records import Arm, ArmCounts, MetricSums


def tally(session: Session, experiment: str, arms: Sequence[Arm]) -> tuple[ArmCounts, ...]:
    sums = _sums(session, experiment)  # first: a unit that comes between the two may lack its outcome, never reverse
    exposed = _exposed(session, experiment)
    return tuple(ArmCounts(arm=arm, exposed=exposed.get(arm.name, 0), metrics=sums.get(arm.name, {})) for arm in arms)


def _exposed(session: Session, experiment: str) -> dict[str, int]:
    counted = select(ExposureRow.arm, func.count()).where(ExposureRow.experiment_id == experiment)
    return dict(session.execute(counted.group_by(ExposureRow.arm)).all())


def _sums(session: Session, experiment: str) -> dict[str, dict[str, MetricSums]]:
    value = OutcomeRow.value
    apart = func.max(func.abs(value * (1 - value))).label("apart")  # 0 for 0 and 1 alone
    unit = (
        select(OutcomeRow.unit_hash, OutcomeRow.metric, func.avg(value).label("value"), apart)
        .where(OutcomeRow.experiment_id == experiment)
        .group_by(OutcomeRow.unit_hash, OutcomeRow.metric)
        .subquery()
    )
    total, squares = func.sum(unit.c.value), func.sum(unit.c.value * unit.c.value)
    statement = (
        select(ExposureRow.arm, unit.c.metric, func.count(), total, squares, func.max(unit.c.apart))
        .join(unit, unit.c.unit_hash == ExposureRow.unit_hash)
        .where(ExposureRow.experiment_id == experiment)
        .group_by(ExposureRow.arm, unit.c.metric)
        .order_by(ExposureRow.arm, unit.c.metric)
    )
    sums: dict[str, dict[str, MetricSums]] = {}
    for arm, metric, count, first, second, furthest in session.execute(statement):
        sums.setdefault(arm, {})[metric] = MetricSums(count, float(first), float(second), furthest == 0)
    return sums
