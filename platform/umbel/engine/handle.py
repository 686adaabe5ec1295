"""The caller's end of a request: its events, from any thread or from asyncio, and the way to stop it."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from umbel.engine.requests import Answer, Event, Finished, Request


class Handle:
    """Events of one request as they come. One reader: ``for``, ``async for``, or ``take`` whenever ``notify`` tells.

    ``drive`` is given where no thread owns the engine: a blocking reader then steps the engine itself.
    """

    def __init__(self, request: Request, *, drive: Callable[[], bool] | None = None) -> None:
        self.request = request
        self.cancelled = False
        """Asked to stop; the row is gone after the step that runs now."""
        self._drive = drive
        self._on_cancel: Callable[[], None] | None = None
        self._events: deque[Event] = deque()
        self._arrived: threading.Event | None = None
        """Where a blocking reader waits; made by it, since whoever reads in an event loop needs none."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: asyncio.Future[None] | None = None
        """Where its reader waits in that loop. An ``asyncio.Event`` would do as well, in twice the time, and that is
        spent for every token."""
        self._tell: Callable[[], None] | None = None
        self._done = False
        self._whole = False
        """Whether its reader waits for the end."""

    def on_cancel(self, call: Callable[[], None]) -> None:
        """Called by the engine: what ``cancel`` tells."""
        self._on_cancel = call

    def cancel(self) -> None:
        """Stops the request; safe from any thread, at any time, more than once. ``Finished`` still comes."""
        self.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    @property
    def done(self) -> bool:
        """Whether ``Finished`` was put; it may still be unread."""
        return self._done

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._next()
            yield event
            if isinstance(event, Finished):
                return

    def _next(self) -> Event:
        arrived = self._arrived = self._arrived or threading.Event()
        while True:
            arrived.clear()
            if self._events:
                return self._events.popleft()
            if self._drive is None:
                arrived.wait()
            else:
                self._drive()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[Event]:
        loop = self._loop = asyncio.get_running_loop()
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, Finished):
                    return
            self._waits = loop.create_future()
            await self._waits

    def notify(self, call: Callable[[], None]) -> None:
        """From now on ``call`` is called in this event loop when events came, in one task for all that a step brought:
        to wake a task for each token takes longer than what is done for it. It must not raise. Handles that have the
        same one get one call for all of them."""
        self._loop, self._tell = asyncio.get_running_loop(), call

    def take(self) -> Iterator[Event]:
        """The events that came and were not taken."""
        while self._events:
            yield self._events.popleft()

    @property
    def unread(self) -> bool:
        return bool(self._events)

    def _go_on(self) -> None:
        """Called in the reader's loop."""
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    def result(self) -> Answer:
        """Waits for the end; raises the request's error."""
        return Answer.of(list(self))

    async def answer(self) -> Answer:
        """``result`` for asyncio; a cancelled task cancels the request."""
        self._whole, self._loop = True, asyncio.get_running_loop()
        try:
            while not self._done:
                self._waits = self._loop.create_future()
                await self._waits
        except asyncio.CancelledError:
            self.cancel()
            raise
        return Answer.of(list(self.take()))

    def put(self, event: Event) -> None:
        """Called by the engine. The reader sees it after ``wake``."""
        self._events.append(event)
        self._done = self._done or isinstance(event, Finished)


def wake(handles: Iterable[Handle]) -> None:
    """Tells readers that events arrived: one call into each event loop for all of its handles."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Handle]] = {}
    for handle in handles:
        if handle._arrived is not None:
            handle._arrived.set()
        if handle._loop is not None and (handle._done or not handle._whole):
            by_loop.setdefault(handle._loop, []).append(handle)
    for loop, arrivals in by_loop.items():
        try:
            loop.call_soon_threadsafe(_go_on_all, arrivals)
        except RuntimeError:  # the loop was closed: nobody reads any more
            continue


def _go_on_all(handles: list[Handle]) -> None:
    calls = dict.fromkeys(handle._tell for handle in handles if handle._tell is not None)
    if calls:
        telling = asyncio.get_running_loop().create_task(_tell_all(calls))
        _TELLING.add(telling)
        telling.add_done_callback(_TELLING.discard)
    for handle in handles:
        handle._go_on()


_TELLING: set[asyncio.Task[None]] = set()
"""An event loop alone holds no task."""


async def _tell_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()
