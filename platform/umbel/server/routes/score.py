"""``/v1/score``: texts to numbers, by a regression adapter."""

from fastapi import APIRouter, Request, Response

from umbel.core.contract import OutputHead
from umbel.core.wire.pooled import Scored, ScoreReply, ScoreRequest
from umbel.registry.records import Scope
from umbel.server.keyed import Part, keyed
from umbel.server.pooling import pool
from umbel.server.security import needs
from umbel.server.service import ServiceDep
from umbel.server.target import Target

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/score", response_model=ScoreReply)
async def score(body: ScoreRequest, request: Request, service: ServiceDep) -> Response:
    """Score texts with the version that ``model`` names right now; a list of models answers keyed by model."""

    async def ask(target: Target) -> Part[Scored]:
        encoded = await service.texts.pooled(target.contract, body.texts)
        pooled = await pool(service, target, [text.ids for text in encoded])
        items = [
            Scored(index=place, score=float(logits[0]), truncated=text.cut > 0)
            for place, (logits, text) in enumerate(zip(pooled.logits, encoded, strict=True))
        ]
        return Part(items, pooled)

    return await keyed(request, service, body, OutputHead.REGRESS, ScoreReply, ask)
