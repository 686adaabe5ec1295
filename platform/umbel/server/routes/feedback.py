"""``/v1/feedback``: what came of an answer. Whoever may ask may say how the answer was."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header

from umbel.core.errors import UsageError
from umbel.core.wire.experiments import FeedbackReply, FeedbackRequest
from umbel.registry.outcomes import Outcome, request_key
from umbel.registry.records import Scope
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["experiments"])

KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


@router.post("/feedback")
async def feedback(body: FeedbackRequest, service: ServiceDep, idempotency_key: KeyHeader = None) -> FeedbackReply:
    """Keep one measurement; the same one sent again counts once. Late ones count too, as long as the registry lives."""
    outcome = Outcome(
        metric=body.metric,
        value=float(body.value),
        idempotency_key=_key(body, idempotency_key),
        name=body.experiment,
        unit=body.unit,
        request_id=body.request_id,
    )
    (counted,) = await to_thread.run_sync(service.registry.experiments.outcomes, [outcome])
    return FeedbackReply(counted=counted)


def _key(body: FeedbackRequest, header: str | None) -> str:
    key = body.idempotency_key or header
    if key is not None:
        return key
    if body.request_id is None:
        raise UsageError(
            "idempotency_key is missing: a unit may have several outcomes, and one that is sent twice looks the same.",
            code="missing_field",
            param="idempotency_key",
            hint="send a key of your own for each outcome, such as an event's id",
        )
    return request_key(body.request_id, body.metric)
