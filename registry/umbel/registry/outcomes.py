"""What came of an exposure: to whom it belongs, and that it counts once."""

import hashlib
from dataclasses import dataclass

from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.digests import digest_json
from umbel.core.errors import Conflict, NotFound, UsageError
from umbel.registry.models import ExperimentRow, ExposedRequestRow, ExposureRow, OutcomeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One measurement of a unit, which is known by a request, or by the experiment's name and its own."""

    metric: str
    value: float
    idempotency_key: str
    name: str | None = None
    unit: str | None = None
    request_id: str | None = None


def request_key(request_id: str, metric: str) -> str:
    """Of an outcome that was sent without one: each metric of a request counts once."""
    return digest_json([request_id, metric])


def shown_to(session: Session, one: Outcome, row: ExperimentRow | None, hashed: str | None) -> ExposureRow:
    """The exposure that an outcome is of: its request's, or that of its experiment (``row``) and unit (``hashed``)."""
    exposure = None
    if one.request_id is not None:
        request = session.get(ExposedRequestRow, one.request_id)
        if request is not None and (row is None or row.id == request.experiment_id):
            exposure = session.get(ExposureRow, (request.experiment_id, request.unit_hash))
    elif row is not None and hashed is not None:
        exposure = session.get(ExposureRow, (row.id, hashed))
    if exposure is None:
        raise NotFound(
            f"no experiment was shown to {one.request_id or one.unit!r}.",
            code="exposure_not_found",
            hint="send the request id of an answer that carried X-Umbel-Arm, or its experiment and unit",
        )
    return exposure


def keep(session: Session, exposure: ExposureRow, one: Outcome) -> bool:
    """False if it is kept already."""
    _refuse_unknown(session, exposure.experiment_id, one.metric)
    key = _key(exposure.experiment_id, one.idempotency_key)
    content = (exposure.experiment_id, exposure.unit_hash, one.metric, one.value)
    known = session.get(OutcomeRow, key)
    if known is None:
        row = OutcomeRow(
            idempotency_key=key,
            experiment_id=exposure.experiment_id,
            unit_hash=exposure.unit_hash,
            metric=one.metric,
            value=one.value,
            at=now_ms(),
        )
        session.add(row)
        session.flush()  # the next outcome of this transaction may have the same key
        return True
    if (known.experiment_id, known.unit_hash, known.metric, known.value) != content:
        raise _other(one, known.value)
    return False


def _other(one: Outcome, value: float) -> Conflict:
    code = "idempotency_mismatch"
    if one.request_id is not None and one.idempotency_key == request_key(one.request_id, one.metric):
        told = f"request {one.request_id} has the {one.metric} {value:g} already; each metric of a request counts once."
        return Conflict(told, code=code, hint="send it with an idempotency_key of its own to count it beside the first")
    told = f"the idempotency key {one.idempotency_key!r} was used for another outcome."
    return Conflict(told, code=code, hint="send a new key with a new outcome")


def _key(experiment: str, key: str) -> str:
    """Two applications that both count their keys from 1 do not meet."""
    return hashlib.sha256(f"{experiment}\0{key}".encode()).hexdigest()


def _refuse_unknown(session: Session, experiment: str, metric: str) -> None:
    row = session.get(ExperimentRow, experiment)
    assert row is not None
    known = row.config.get("metrics")
    if known is not None and metric not in known:
        raise UsageError(
            f"{row.name!r} does not measure {metric!r}.",
            code="unknown_metric",
            param="metric",
            hint=f"it measures {', '.join(known)}",
        )
