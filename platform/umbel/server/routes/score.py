"""``/v1/score``: texts to numbers, by a regression adapter."""

from fastapi import APIRouter, Request, Response
from torch import Tensor

from umbel.backbone.texts import Encoded
from umbel.core.contract import Contract, OutputHead
from umbel.core.wire.pooled import Scored, ScoreReply, ScoreRequest
from umbel.registry.records import Scope
from umbel.server.keyed import keyed
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/score", response_model=ScoreReply)
async def score(body: ScoreRequest, request: Request, service: ServiceDep) -> Response:
    """Score texts with the version that ``model`` names right now; a list of models answers keyed by model."""

    async def read(contract: Contract) -> list[Encoded]:
        return await service.texts.pooled(contract, body.texts)

    def tell(place: int, logits: Tensor, text: Encoded, contract: Contract) -> Scored:
        return Scored(index=place, score=float(logits[0]), truncated=text.cut > 0)

    return await keyed(request, service, body, OutputHead.REGRESS, ScoreReply, read, tell)
