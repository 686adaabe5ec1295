"""The engine's rows of one HTTP request: submitted together, cancelled together, whatever ends them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
        self.unfinished = 0
        """Rows whose end was not taken yet."""

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """All or none: where the queue is full in the middle, those before are taken back."""
        try:
            for request in requests:
                self.handles.append(self.service.submit(request))
                self.unfinished += 1
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

    def notify(self, call: Callable[[], None]) -> None:
        """From now on ``call`` is called in a task of this event loop when there is something to take."""
        for handle in self.handles:
            handle.notify(call)

    async def arrival(self) -> None:
        """Waits for the first event."""
        arrived = asyncio.get_running_loop().create_future()
        self.notify(lambda: None if arrived.done() else arrived.set_result(None))
        if not any(handle.unread for handle in self.handles):
            await arrived

    def take(self) -> Iterator[Placed]:
        """The events that came and were not taken. Raises the first error of a row."""
        for place, handle in enumerate(self.handles):
            for event in handle.take():
                if isinstance(event, Finished):
                    self.unfinished -= 1
                    self._ended(event)
                yield place, event

    def _ended(self, finished: Finished) -> None:
        self.service.observe(self.target, finished)
        if finished.error is not None:
            raise finished.error
        if finished.reason == "cancelled":
            raise shutting_down()


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
