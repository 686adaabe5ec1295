"""One model or several in a pooled request: each is asked, and the answers are keyed by what the request named."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from umbel.core.contract import Contract, OutputHead
from umbel.core.wire.base import Usage
from umbel.core.wire.pooled import PooledReply, PooledRequest
from umbel.engine import Timing
from umbel.server.answers import reply
from umbel.server.enrolling import Caller
from umbel.server.pooling import Pooled, pool
from umbel.server.rows import server_timing, unless_gone
from umbel.server.security import tenant_of
from umbel.server.service import Service
from umbel.server.target import Target, headers_of

Item = TypeVar("Item")


class Tokens(Protocol):
    """A text as an adapter's contract reads it."""

    @property
    def ids(self) -> Sequence[int]: ...


Read = TypeVar("Read", bound=Tokens)


async def keyed(
    request: Request,
    service: Service,
    body: PooledRequest,
    head: OutputHead,
    kind: type[PooledReply[Item]],
    read: Callable[[Contract], Awaitable[Sequence[Read]]],
    tell: Callable[[int, Tensor, Read, Contract], Item],
) -> Response:
    """Resolves every model before any is asked, so that one wrong name costs nothing.

    ``read`` makes the texts' tokens by a contract; ``tell`` makes an answer of (place, logits, text, contract).
    """
    caller = Caller.of(request, body.safety_identifier)
    targets = [await service.targets.find(model, head, caller=caller) for model in body.models]

    async def ask() -> tuple[list[list[Item]], list[Pooled]]:
        texts = [await read(target.contract) for target in targets]
        ids = [[text.ids for text in of_target] for of_target in texts]
        pooled = await pool(service, targets, ids, tenant=tenant_of(request))
        items = [
            [tell(place, *found, target.contract) for place, found in enumerate(zip(one.logits, own, strict=True))]
            for target, one, own in zip(targets, pooled, texts, strict=True)
        ]
        return items, pooled

    items, pooled = await unless_gone(request, ask())
    timings: list[Timing] = [timing for one in pooled for timing in one.timings]
    headers = {**headers_of(targets), **server_timing(timings)}
    return reply(_body(body, kind, targets, items, Usage.total([one.usage for one in pooled])), headers)


def _body(
    body: PooledRequest,
    kind: type[PooledReply[Item]],
    targets: Sequence[Target],
    items: Sequence[list[Item]],
    usage: Usage,
) -> PooledReply[Item]:
    if isinstance(body.model, str):
        return kind(model=targets[0].shown, data=items[0], usage=usage)
    return kind(results=dict(zip(body.models, items, strict=True)), usage=usage)
