"""``/v1/classify``: texts to labels."""

from fastapi import APIRouter, Request, Response
from torch import Tensor

from umbel.adapters.heads.classify import probabilities
from umbel.backbone.texts import Encoded
from umbel.core.contract import Contract, OutputHead
from umbel.core.wire.pooled import Classified, ClassifyReply, ClassifyRequest
from umbel.registry.records import Scope
from umbel.server.keyed import keyed
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/classify", response_model=ClassifyReply)
async def classify(body: ClassifyRequest, request: Request, service: ServiceDep) -> Response:
    """Label texts with the version that ``model`` names right now; a list of models answers keyed by model."""

    async def read(contract: Contract) -> list[Encoded]:
        return await service.texts.pooled(contract, body.texts)

    def tell(place: int, logits: Tensor, text: Encoded, contract: Contract) -> Classified:
        return classified(place, logits, contract, truncated=text.cut > 0, abstain_below=body.abstain_below)

    return await keyed(request, service, body, OutputHead.CLASSIFY, ClassifyReply, read, tell)


def classified(
    index: int, logits: Tensor, contract: Contract, *, truncated: bool, abstain_below: float | None = None
) -> Classified:
    """``abstain_below`` None is the contract's own bound; a probability that equals the bound is likely enough."""
    probs = [float(prob) for prob in probabilities(logits, multi_label=contract.multi_label)]
    abstained = max(probs) < (contract.abstain_below if abstain_below is None else abstain_below)
    labels = list(contract.labels)
    return Classified(
        index=index,
        label=None if abstained else _label(probs, contract),
        abstained=abstained,
        probs=probs,
        labels=labels,
        num_classes=len(labels),
        truncated=truncated,
    )


def _label(probs: list[float], contract: Contract) -> str | list[str]:
    if contract.multi_label:
        return [label for label, prob in zip(contract.labels, probs, strict=True) if prob >= contract.threshold]
    return contract.labels[max(range(len(probs)), key=probs.__getitem__)]
