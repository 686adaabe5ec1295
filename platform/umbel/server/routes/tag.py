"""``/v1/tag``: a label for each word of a text."""

from fastapi import APIRouter, Request, Response
from torch import Tensor

from umbel.adapters.heads.classify import probabilities
from umbel.backbone.words import EncodedWords
from umbel.core.contract import Contract, OutputHead
from umbel.core.wire.pooled import Tagged, TaggedWord, TagReply, TagRequest
from umbel.registry.records import Scope
from umbel.server.keyed import Part, keyed
from umbel.server.pooling import pool
from umbel.server.security import needs
from umbel.server.service import ServiceDep
from umbel.server.target import Target

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["output heads"])


@router.post("/tag", response_model=TagReply)
async def tag(body: TagRequest, request: Request, service: ServiceDep) -> Response:
    """Tag the words of texts, or words given as lists, with the version that ``model`` names right now."""

    async def ask(target: Target) -> Part[Tagged]:
        encoded = await service.texts.words(target.contract, body.inputs)
        pooled = await pool(service, target, [text.ids for text in encoded])
        items = [
            Tagged(index=place, tags=_tags(logits, text, target.contract), truncated=text.cut > 0)
            for place, (logits, text) in enumerate(zip(pooled.logits, encoded, strict=True))
        ]
        return Part(items, pooled)

    return await keyed(request, service, body, OutputHead.TAG, TagReply, ask)


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
