"""Classify, score, tag and embeddings: the same path from texts to the raw logits of an output head."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from umbel.core.wire.base import Usage
from umbel.engine import Answer, PoolRequest, Timing
from umbel.server.generating import used
from umbel.server.rows import Rows
from umbel.server.service import Service
from umbel.server.target import Target

T = TypeVar("T")


class Pooled:
    """What came of one model's inputs."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.logits = [_logits(answer) for answer in answers]
        self.timings: list[Timing] = [answer.finished.timing for answer in answers]
        self.usage = Usage.total([used(answer.finished) for answer in answers])


def _logits(answer: Answer) -> Tensor:
    assert answer.logits is not None
    return answer.logits


async def pool(
    service: Service, targets: Sequence[Target], inputs: Sequence[Sequence[Sequence[int]]], *, tenant: str
) -> list[Pooled]:
    """``inputs[i][j]`` are the tokens of text j as target i reads it; what comes of each target, in order.

    All targets are asked a text together, so that the engine can read it once for those that read it alike. A window
    of texts is in the engine at once, so that one request cannot fill the queue.
    """
    deadline = service.deadline
    window = asyncio.Semaphore(max(1, service.config.rows_in_flight // len(targets)))

    async def one(requests: Sequence[PoolRequest]) -> list[Answer]:
        async with window:
            return await _together(service, targets, requests)

    texts = [
        [_request(target, ids, tenant, deadline) for target, ids in zip(targets, text, strict=True)]
        for text in zip(*inputs, strict=True)
    ]
    answers = await all_or_none([asyncio.create_task(one(requests)) for requests in texts])
    return [Pooled(of_target) for of_target in zip(*answers, strict=True)]


def _request(target: Target, ids: Sequence[int], tenant: str, deadline: float) -> PoolRequest:
    assert target.adapter is not None
    return PoolRequest(tokens=tuple(ids), adapter=target.adapter, tenant=tenant, deadline=deadline)


async def _together(service: Service, targets: Sequence[Target], requests: Sequence[PoolRequest]) -> list[Answer]:
    """One text's answers: each target's rows are its own, in metrics and experiments too."""
    asked = [Rows(service, target) for target in targets]
    for rows, handle in zip(asked, service.submit_together(requests), strict=True):
        rows.handles.append(handle)
    found = await all_or_none([asyncio.create_task(rows.answers()) for rows in asked])
    return [answer for answers in found for answer in answers]


async def all_or_none(tasks: Sequence[asyncio.Task[T]]) -> list[T]:
    """The results in order. The first failure, or a cancel, ends the others too."""
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
