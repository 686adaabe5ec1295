"""``/v1/tag``: a label for each word of a text."""

from fastapi import APIRouter, Request, Response
from torch import Tensor

from umbel.adapters.heads.classify import probabilities
from umbel.backbone.words import EncodedWords
from umbel.core.contract import Contract, OutputHead
from umbel.core.wire.pooled import Tagged, TaggedWord, TagReply, TagRequest
from umbel.registry.records import Scope
from umbel.server.keyed import keyed
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/tag", response_model=TagReply)
async def tag(body: TagRequest, request: Request, service: ServiceDep) -> Response:
    """Tag the words of texts, or words given as lists, with the version that ``model`` names right now."""

    async def read(contract: Contract) -> list[EncodedWords]:
        return await service.texts.words(contract, body.inputs)

    def tell(place: int, logits: Tensor, text: EncodedWords, contract: Contract) -> Tagged:
        return Tagged(index=place, tags=_tags(logits, text, contract), truncated=text.cut > 0)

    return await keyed(request, service, body, OutputHead.TAG, TagReply, read, tell)


def _tags(logits: Tensor, text: EncodedWords, contract: Contract) -> list[TaggedWord]:
    """``logits`` [tokens, labels]; a word's first token speaks for it, and words that were cut off have no tag."""
    probs = probabilities(logits, multi_label=False)
    best, labels = probs.max(dim=-1)
    return [
        TaggedWord(
            word=word.text,
            start=word.start,
            end=word.end,
            tag=contract.labels[int(labels[place])],
            prob=float(best[place]),
        )
        for word, place in zip(text.words, text.places, strict=True)
        if place is not None
    ]
