"""``/v1/embeddings``: texts to vectors of length one, by an embedding adapter."""

import base64

from fastapi import APIRouter, Request, Response
from torch import Tensor
from torch.nn import functional as F

from umbel.backbone.texts import Encoded
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import UsageError
from umbel.core.wire.pooled import Embedded, EmbeddingsReply, EmbeddingsRequest
from umbel.registry.records import Scope
from umbel.server.keyed import keyed
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/embeddings", response_model=EmbeddingsReply)
async def embeddings(body: EmbeddingsRequest, request: Request, service: ServiceDep) -> Response:
    """Embed texts or token ids with the version that ``model`` names right now."""

    async def read(contract: Contract) -> list[Encoded]:
        return await service.texts.pooled(contract, body.inputs)

    def tell(place: int, logits: Tensor, text: Encoded, contract: Contract) -> Embedded:
        vector = _shortened(logits, body.dimensions)
        return Embedded(index=place, embedding=_coded(vector, body.encoding_format))

    return await keyed(request, service, body, OutputHead.EMBED, EmbeddingsReply, read, tell)


def _shortened(vector: Tensor, dimensions: int | None) -> Tensor:
    """The leading values at length one again; a vector that was not trained for it loses some meaning."""
    if dimensions is None:
        return vector
    if dimensions > vector.shape[0]:
        raise UsageError(
            f"dimensions is {dimensions}, the adapter gives {vector.shape[0]}.",
            param="dimensions",
            hint=f"ask for at most {vector.shape[0]}, or leave it out",
        )
    return F.normalize(vector[:dimensions], dim=0)


def _coded(vector: Tensor, encoding: str) -> list[float] | str:
    if encoding == "float":
        return [float(value) for value in vector]
    return base64.b64encode(vector.float().numpy().astype("<f4").tobytes()).decode()
