"""``/v1/chat/completions``: a conversation with the backbone or an adapter, or one text for an adapter's template."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from umbel.core.contract import OutputHead
from umbel.core.wire.base import Usage
from umbel.core.wire.chat import (
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatReply,
    ChatRequest,
    ChunkChoice,
    Delta,
    ReplyMessage,
    TokenLogprob,
    TopLogprob,
)
from umbel.engine import Answer, Event, Finished, Token
from umbel.registry.records import Scope
from umbel.server.answers import reply
from umbel.server.enrolling import Caller
from umbel.server.generating import Chunker, Head, engine_requests, stream, used, wire_reason
from umbel.server.rows import Rows, server_timing, unless_gone
from umbel.server.security import needs, tenant_of
from umbel.server.service import ServiceDep
from umbel.server.sse import around, data
from umbel.server.texts import Texts

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFER)], tags=["generate"])


@router.post("/chat/completions", response_model=ChatReply)
async def chat(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    """Answer the last message, with the version that ``model`` names right now."""
    target = await service.targets.find(
        body.model, OutputHead.GENERATE, caller=Caller.of(request, body.safety_identifier)
    )
    prompt = await service.texts.chat(target.contract, body.messages)
    wanted = (body.top_logprobs or 0) if body.logprobs else None
    rows = Rows(service, target)
    tenant = tenant_of(request)
    rows.submit(engine_requests(service, target, [prompt], body, tenant=tenant, limit=body.limit, logprobs=wanted))
    head = Head.of("chatcmpl", target)
    if body.stream:
        return await stream(request, rows, _Chunks(head, service.texts, wanted is not None, usage=body.wants_usage))
    (answer,) = await unless_gone(request, rows.answers())
    choice = _choice(answer, service.texts, wanted is not None)
    body_out = ChatReply(**asdict(head), choices=[choice], usage=used(answer.finished))
    return reply(body_out, {**target.headers, **server_timing([answer.finished.timing])})


def _choice(answer: Answer, texts: Texts, logprobs: bool) -> ChatChoice:
    return ChatChoice(
        message=ReplyMessage(content=answer.text),
        finish_reason=wire_reason(answer.finished),
        logprobs=ChatLogprobs(content=[_scored(token, texts) for token in answer.tokens]) if logprobs else None,
    )


def _scored(token: Token, texts: Texts) -> TokenLogprob:
    assert token.logprob is not None
    top = [_one(texts.token(other.token), other.logprob) for other in token.top]
    chosen = _one(texts.token(token.token), token.logprob)
    return TokenLogprob(**chosen.model_dump(), top_logprobs=top)


def _one(text: str, logprob: float) -> TopLogprob:
    """A token that is part of a character has no text of its own, hence no bytes that could be told."""
    return TopLogprob(token=text, logprob=logprob, bytes=None if "�" in text else list(text.encode()))


class _Chunks(Chunker):
    def __init__(self, head: Head, texts: Texts, logprobs: bool, *, usage: bool) -> None:
        super().__init__(head, usage=usage)
        self.texts = texts
        self.logprobs = logprobs
        self._plain = around(lambda text: self._chunk(ChunkChoice(delta=Delta(content=text))))

    def start(self) -> list[bytes]:
        return [self._chunk(ChunkChoice(delta=Delta(role="assistant", content="")))]

    def of(self, place: int, event: Event) -> list[bytes]:
        if isinstance(event, Token):
            return self._token(event)
        assert isinstance(event, Finished)
        return [self._chunk(ChunkChoice(delta=Delta(), finish_reason=wire_reason(event)))]

    def _token(self, token: Token) -> list[bytes]:
        if not self.logprobs:
            return [self._plain(token.text)] if token.text else []
        scored = ChatLogprobs(content=[_scored(token, self.texts)])
        return [self._chunk(ChunkChoice(delta=Delta(content=token.text), logprobs=scored))]

    def usage(self, counted: Usage) -> bytes:
        return data(ChatChunk(**asdict(self.head), choices=[], usage=counted))

    def _chunk(self, choice: ChunkChoice) -> bytes:
        return data(ChatChunk(**asdict(self.head), choices=[choice]))
