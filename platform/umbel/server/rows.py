"""The engine's rows of one HTTP request: submitted together, cancelled together, whatever ends them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request

from umbel.core.errors import Interrupted, UmbelError
from umbel.engine import Answer, Event, Finished, Handle, Timing
from umbel.engine import Request as EngineRequest
from umbel.server.service import Service, shutting_down
from umbel.server.sse import disconnected
from umbel.server.target import Target

T = TypeVar("T")

Placed = tuple[int, Event]
"""An event and the place of its row in the request."""


class Rows:
    def __init__(self, service: Service, target: Target) -> None:
        self.service = service
        self.target = target
        self.handles: list[Handle] = []

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """All or none: where the queue is full in the middle, those before are taken back."""
        try:
            for request in requests:
                self.handles.append(self.service.submit(request))
        except UmbelError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """What runs stops within one step; what is done stays done."""
        for handle in self.handles:
            if not handle.done:
                handle.cancel()

    async def answers(self) -> list[Answer]:
        """In order of submission. Raises the first error, and then the others stop too."""
        try:
            return await asyncio.gather(*(self._answer(handle) for handle in self.handles))
        except BaseException:
            self.cancel()
            raise

    async def _answer(self, handle: Handle) -> Answer:
        answer = await handle.answer()
        self._ended(answer.finished)
        return answer

    async def events(self) -> AsyncGenerator[Placed]:
        """Of all rows as they come, with the row's place. Raises the first error, and then the others stop too."""
        try:
            if len(self.handles) == 1:  # without a queue, which wakes two tasks for each token
                async for event in self.handles[0]:
                    if isinstance(event, Finished):
                        self._ended(event)
                    yield 0, event
                return
            async with aclosing(_merged(self.handles)) as reading:
                async for place, event in reading:
                    if isinstance(event, Finished):
                        self._ended(event)
                    yield place, event
        finally:
            self.cancel()

    def _ended(self, finished: Finished) -> None:
        self.service.observe(self.target, finished)
        if finished.error is not None:
            raise finished.error
        if finished.reason == "cancelled":
            raise shutting_down()


async def _merged(handles: Sequence[Handle]) -> AsyncGenerator[Placed]:
    queue: asyncio.Queue[Placed] = asyncio.Queue()
    readers = [asyncio.create_task(_read(handle, place, queue)) for place, handle in enumerate(handles)]
    try:
        left = len(readers)
        while left:
            place, event = await queue.get()
            left -= isinstance(event, Finished)
            yield place, event
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(handle: Handle, place: int, queue: asyncio.Queue[Placed]) -> None:
    async for event in handle:
        queue.put_nowait((place, event))  # bounded by max_tokens, which was admitted with its memory


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away. Needs the body to be read already."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted("the client went away.")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def server_timing(timings: Sequence[Timing]) -> dict[str, str]:
    """The header that browsers and tools read; of several rows, the slowest part of each."""
    parts = {
        "queue": max((timing.queue_ms for timing in timings), default=0.0),
        "load": max((timing.load_ms for timing in timings), default=0.0),
        "prefill": max((timing.prefill_ms for timing in timings), default=0.0),
        "decode": max((timing.decode_ms for timing in timings), default=0.0),
    }
    return {"Server-Timing": ", ".join(f"{name};dur={ms:.1f}" for name, ms in parts.items())}
