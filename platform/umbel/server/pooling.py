"""Classify, score, tag and embeddings: the same path from texts to the raw logits of an output head."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from umbel.core.wire.base import Usage
from umbel.engine import Answer, PoolRequest, Timing
from umbel.server.rows import Rows
from umbel.server.service import Service
from umbel.server.target import Target

T = TypeVar("T")


class Pooled:
    """What came of one model's inputs."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.logits = [_logits(answer) for answer in answers]
        self.timings: list[Timing] = [answer.finished.timing for answer in answers]
        self.usage = Usage.of(sum(answer.finished.usage.prompt_tokens for answer in answers))


def _logits(answer: Answer) -> Tensor:
    assert answer.logits is not None
    return answer.logits


async def pool(service: Service, target: Target, inputs: Sequence[Sequence[int]]) -> Pooled:
    """One row for each input, a window of them in the engine at once, so that one request cannot fill the queue."""
    assert target.adapter is not None
    deadline = service.deadline
    requests = [PoolRequest(tokens=tuple(ids), adapter=target.adapter, deadline=deadline) for ids in inputs]
    window = asyncio.Semaphore(service.config.rows_in_flight)

    async def one(request: PoolRequest) -> Answer:
        async with window:
            rows = Rows(service, target)
            rows.submit([request])
            return (await rows.answers())[0]

    return Pooled(await all_or_none([asyncio.create_task(one(request)) for request in requests]))


async def all_or_none(tasks: Sequence[asyncio.Task[T]]) -> list[T]:
    """The results in order. The first failure, or a cancel, ends the others too."""
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
