"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: what a harness needs to send token ids."""

from fastapi import APIRouter

from umbel.core.wire.server import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
)
from umbel.registry.records import Scope
from umbel.server.security import needs
from umbel.server.service import ServiceDep

router = APIRouter(dependencies=[needs(Scope.INFER)], tags=["tokenizer"])


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> TokenizeReply:
    """Token ids of a text or of a conversation. All models of a server share one tokenizer."""
    if body.messages is not None:
        ids = await service.texts.chat_tokens(body.messages, reply=body.add_generation_prompt)
    else:
        ids = await service.texts.tokens(body.prompt or "", special=body.add_special_tokens)
    strings = [service.texts.token(index) for index in ids] if body.return_token_strs else None
    return TokenizeReply(tokens=ids, count=len(ids), max_model_len=service.backbone.context, token_strs=strings)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> DetokenizeReply:
    return DetokenizeReply(prompt=service.texts.decode(body.tokens))


@router.get("/tokenizer_info")
async def tokenizer_info(service: ServiceDep) -> TokenizerInfo:
    tokenizer = service.texts.tokenizer.hf
    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        vocab_size=len(tokenizer),
        model_max_length=service.backbone.context,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        chat_template=tokenizer.chat_template,
    )
