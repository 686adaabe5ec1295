"""``/v1/completions``: prompts as they are, continued; or scored, with ``echo`` and ``logprobs``."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from fastapi import APIRouter, Request, Response

from umbel.core.contract import OutputHead
from umbel.core.wire.base import Usage
from umbel.core.wire.completions import CompletionChoice, CompletionLogprobs, CompletionReply, CompletionRequest
from umbel.engine import Answer, Event, Finished, Prompt, Scored, Token
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


@router.post("/completions", response_model=CompletionReply)
async def completions(body: CompletionRequest, request: Request, service: ServiceDep) -> Response:
    """Continue one prompt or a list of them, with the version that ``model`` names right now."""
    target = await service.targets.find(
        body.model, OutputHead.GENERATE, caller=Caller.of(request, body.safety_identifier)
    )
    prompts = await service.texts.completions(target.contract, body.prompts)
    rows = Rows(service, target)
    wanted = engine_requests(
        service,
        target,
        prompts,
        body,
        tenant=tenant_of(request),
        limit=body.max_tokens,
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )
    rows.submit(wanted)
    echoed = _echoed(body, service.texts)
    head = Head.of("cmpl", target)
    if body.stream:
        return await stream(request, rows, _Chunks(head, service.texts, body.logprobs, echoed, usage=body.wants_usage))
    answers = await unless_gone(request, rows.answers())
    choices = [
        _choice(place, answer, text, service.texts, body.logprobs)
        for place, (answer, text) in enumerate(zip(answers, echoed, strict=True))
    ]
    usage = Usage.total([used(answer.finished) for answer in answers])
    timing = server_timing([answer.finished.timing for answer in answers])
    return reply(CompletionReply(**asdict(head), choices=choices, usage=usage), {**target.headers, **timing})


def _echoed(body: CompletionRequest, texts: Texts) -> list[str]:
    """What stands before each answer: its prompt as sent, or nothing."""
    if not body.echo:
        return [""] * len(body.prompts)
    return [prompt if isinstance(prompt, str) else texts.decode(prompt) for prompt in body.prompts]


def _choice(place: int, answer: Answer, echoed: str, texts: Texts, wanted: int | None) -> CompletionChoice:
    logprobs = None
    if wanted is not None:
        logprobs = Logprobs(texts).add([*answer.prompt, *answer.tokens])
    reason = wire_reason(answer.finished)
    return CompletionChoice(index=place, text=echoed + answer.text, finish_reason=reason, logprobs=logprobs)


class Logprobs:
    """OpenAI's four lists; ``text_offset`` goes on from one chunk of a stream to the next."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.offset = 0

    def add(self, scored: Sequence[Scored | Token]) -> CompletionLogprobs:
        """Of these tokens. The chosen token is always among ``top_logprobs``, with the very same float."""
        lists = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for one in scored:
            text = self.texts.token(one.token)
            lists.tokens.append(text)
            lists.token_logprobs.append(one.logprob)
            lists.top_logprobs.append(self._top(text, one))
            lists.text_offset.append(self.offset)
            self.offset += len(text)
        return lists

    def _top(self, text: str, one: Scored | Token) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        found = {text: one.logprob}
        for other in one.top:  # tokens that read alike share a key: the likeliest stays
            key = self.texts.token(other.token)
            found[key] = max(other.logprob, found.get(key, other.logprob))
        return found


class _Chunks(Chunker):
    def __init__(self, head: Head, texts: Texts, wanted: int | None, echoed: Sequence[str], *, usage: bool) -> None:
        super().__init__(head, usage=usage)
        self.wanted = wanted
        self.echoed = echoed
        self.logprobs = [Logprobs(texts) for _ in echoed]
        self._plain = [around(partial(self._of_text, place)) for place in range(len(echoed))]

    def start(self) -> list[bytes]:
        if self.wanted is not None:
            return []  # the prompt's own tokens come with their logprobs
        return [self._chunk(CompletionChoice(index=place, text=text)) for place, text in enumerate(self.echoed) if text]

    def of(self, place: int, event: Event) -> list[bytes]:
        if isinstance(event, Prompt):
            lists = self.logprobs[place].add(event.scores)
            return [self._chunk(CompletionChoice(index=place, text=self.echoed[place], logprobs=lists))]
        if isinstance(event, Token):
            return self._token(place, event)
        assert isinstance(event, Finished)
        return [self._chunk(CompletionChoice(index=place, text="", finish_reason=wire_reason(event)))]

    def _token(self, place: int, token: Token) -> list[bytes]:
        if self.wanted is not None:
            lists = self.logprobs[place].add([token])
            return [self._chunk(CompletionChoice(index=place, text=token.text, logprobs=lists))]
        return [self._plain[place](token.text)] if token.text else []

    def _of_text(self, place: int, text: str) -> bytes:
        return self._chunk(CompletionChoice(index=place, text=text))

    def usage(self, counted: Usage) -> bytes:
        return data(CompletionReply(**asdict(self.head), choices=[], usage=counted))

    def _chunk(self, choice: CompletionChoice) -> bytes:
        return data(CompletionReply(**asdict(self.head), choices=[choice]))
