"""One model or several in a pooled request: each is asked, and the answers are keyed by what the request named."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from umbel.core.contract import OutputHead
from umbel.core.wire.base import Usage
from umbel.core.wire.pooled import PooledReply, PooledRequest
from umbel.engine import Timing
from umbel.server.answers import reply, target_headers
from umbel.server.enrolling import Caller
from umbel.server.pooling import Pooled, all_or_none
from umbel.server.rows import server_timing, unless_gone
from umbel.server.service import Service
from umbel.server.target import Target

Item = TypeVar("Item")


class Part(Generic[Item]):
    """One model's answers."""

    def __init__(self, items: list[Item], pooled: Pooled) -> None:
        self.items = items
        self.pooled = pooled


Ask = Callable[[Target], Awaitable[Part[Item]]]


async def keyed(
    request: Request,
    service: Service,
    body: PooledRequest,
    head: OutputHead,
    kind: type[PooledReply[Item]],
    ask: Ask[Item],
) -> Response:
    """Resolves every model before any is asked, so that one wrong name costs nothing."""
    caller = Caller.of(request, body.safety_identifier)
    targets = [await service.targets.find(model, head, caller=caller) for model in body.models]
    tasks = [asyncio.ensure_future(ask(target)) for target in targets]
    parts = await unless_gone(request, all_or_none(tasks))
    timings: list[Timing] = [timing for part in parts for timing in part.pooled.timings]
    headers = {**target_headers(targets), **server_timing(timings)}
    return reply(_body(body, kind, targets, parts), headers)


def _body(
    body: PooledRequest, kind: type[PooledReply[Item]], targets: Sequence[Target], parts: Sequence[Part[Item]]
) -> PooledReply[Item]:
    usage = Usage.of(sum(part.pooled.usage.prompt_tokens for part in parts))
    if isinstance(body.model, str):
        return kind(model=targets[0].shown, data=parts[0].items, usage=usage)
    results = {model: part.items for model, part in zip(body.models, parts, strict=True)}
    return kind(results=results, usage=usage)
