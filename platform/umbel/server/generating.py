"""What chat and completions share: from a request's fields and the adapter's defaults to rows of the engine."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from umbel.core.clock import new_id, now_ms
from umbel.core.errors import UmbelError
from umbel.core.wire.base import Usage
from umbel.core.wire.sampling import SamplingRequest
from umbel.engine import Event, Finished, GenerateRequest
from umbel.server.rows import Placed, Rows, unless_gone
from umbel.server.service import Service
from umbel.server.sse import DONE, EventStream, failure
from umbel.server.target import Target


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def of(cls, prefix: str, target: Target) -> "Head":
        return cls(new_id(prefix), now_ms() // 1000, target.shown, target.fingerprint)


def engine_requests(
    service: Service,
    target: Target,
    prompts: Sequence[list[int]],
    body: SamplingRequest,
    *,
    tenant: str,
    limit: int | None,
    logprobs: int | None,
    echo: bool = False,
) -> list[GenerateRequest]:
    """One row for each prompt."""
    default, deadline = target.contract.decoding, service.deadline
    return [
        GenerateRequest(
            tokens=tuple(prompt),
            adapter=target.adapter,
            tenant=tenant,
            max_tokens=_room(service, len(prompt), limit, default.max_tokens),
            min_tokens=body.min_tokens,
            temperature=default.temperature if body.temperature is None else body.temperature,
            top_p=default.top_p if body.top_p is None else body.top_p,
            top_k=default.top_k if body.top_k is None else max(0, body.top_k),
            stop=default.stop if body.stops is None else body.stops,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=body.ignore_eos,
            seed=body.seed,
            logprobs=logprobs,
            echo=echo,
            deadline=deadline,
        )
        for prompt in prompts
    ]


def _room(service: Service, prompt: int, wanted: int | None, default: int) -> int:
    """A length that was asked for must fit, which the engine checks; the default one takes what is left."""
    return max(0, min(default, service.backbone.context - prompt)) if wanted is None else wanted


class Chunker(ABC):
    """Turns the events of rows into the parts of one stream; each route has its own."""

    def __init__(self, head: Head, *, usage: bool) -> None:
        self.head = head
        self.counted = Usage() if usage else None

    def start(self) -> list[bytes]:
        """Before the first event."""
        return []

    @abstractmethod
    def of(self, place: int, event: Event) -> list[bytes]: ...

    @abstractmethod
    def usage(self, counted: Usage) -> bytes:
        """The last chunk, without choices."""

    def all_of(self, place: int, event: Event) -> list[bytes]:
        if isinstance(event, Finished) and self.counted is not None:
            self.counted = Usage.total([self.counted, used(event)])
        return self.of(place, event)

    def end(self) -> list[bytes]:
        return [*([self.usage(self.counted)] if self.counted is not None else []), DONE]


def used(finished: Finished) -> Usage:
    usage = finished.usage
    return Usage.of(usage.prompt_tokens, usage.completion_tokens, cached=usage.cached_tokens)


def wire_reason(finished: Finished) -> Literal["stop", "length"]:
    """The two that OpenAI knows; the others never reach a reply, they are errors."""
    assert finished.reason in ("stop", "length"), finished.reason
    return "stop" if finished.reason == "stop" else "length"


class Parts:
    """A stream's bytes as they come: each time those of the events that came since."""

    def __init__(self, rows: Rows, chunker: Chunker) -> None:
        self._rows, self._chunker = rows, chunker
        self._first: list[bytes] = []
        self.ended = False

    def begin(self) -> None:
        """Looks at what came first. Raises the error of a row that has nothing else to say."""
        events = self._rows.take()
        first = next(events)
        self._first = [*self._chunker.start(), *self._chunker.all_of(*first), *self._of(events)]

    def notify(self, call: Callable[[], None]) -> None:
        self._rows.notify(call)

    def take(self) -> bytes:
        parts, self._first = self._first, []
        return b"".join(parts if self.ended else [*parts, *self._of(self._rows.take())])

    def _of(self, events: Iterator[Placed]) -> list[bytes]:
        parts: list[bytes] = []
        try:
            for placed in events:
                parts += self._chunker.all_of(*placed)
            if not self._rows.unfinished:
                parts += self._chunker.end()
                self.ended = True
        except UmbelError as error:
            self._rows.cancel()  # nobody hears of the others any more
            parts.append(failure(error))
            self.ended = True
        return parts


async def stream(request: Request, rows: Rows, chunker: Chunker) -> EventStream:
    """Waits for the first event, so that what fails before it is an HTTP status, then hands the rest over."""
    parts, began, config = Parts(rows, chunker), time.perf_counter(), rows.service.config
    try:
        await unless_gone(request, rows.arrival())
        parts.begin()
    except BaseException:
        rows.cancel()
        raise
    return EventStream(
        parts,
        close=rows.cancel,
        headers={**rows.target.headers, "Server-Timing": f"first;dur={1e3 * (time.perf_counter() - began):.1f}"},
        ping=config.ping_seconds,
        patience=config.patience_seconds,
    )
