"""Server-sent events, as OpenAI's SDK reads them.

    data: {json}\n\n  ...  data: [DONE]\n\n

A failure midway is one ``data:`` object with ``error`` and then the end, without ``[DONE]``. Where nothing happens for
a while, the comment ``: ping`` keeps proxies from closing. A reader that takes nothing for too long is dropped.
"""

import asyncio
import json
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from functools import partial
from json.encoder import encode_basestring
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from umbel.core.errors import UmbelError
from umbel.server.errors import error_body

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


_ENDS_OF_LINE = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Many clients split lines at these too, which JSON leaves as they are."""


def data(model: BaseModel) -> bytes:
    return f"data: {model.model_dump_json().translate(_ENDS_OF_LINE)}\n\n".encode()


_HERE = "\N{BLACK SQUARE}"


def around(chunk: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Makes of any text what ``chunk`` makes of it, whose other words stay the same: filling a model for each token
    takes longer than all else that is done for it."""
    before, _, after = chunk(_HERE).rpartition(encode_basestring(_HERE).encode())

    def filled(text: str) -> bytes:
        quoted = encode_basestring(text)
        return before + (quoted if quoted.isascii() else quoted.translate(_ENDS_OF_LINE)).encode() + after

    return filled


def failure(error: UmbelError) -> bytes:
    return f"data: {json.dumps(error_body(error))}\n\n".encode()


DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


class Parts(Protocol):
    """What a stream is made of."""

    @property
    def ended(self) -> bool:
        """Whether the last bytes were taken."""
        ...

    def notify(self, call: Callable[[], None]) -> None:
        """From now on ``call`` is called in a task of this event loop when there is something to take."""
        ...

    def take(self) -> bytes:
        """What came since the last time; it may be nothing."""
        ...


class EventStream(Response):
    """Sends ``parts`` as they come; ``close`` is called exactly once, however it ends.

    ``patience``: seconds that one write may wait for a slow reader. uvicorn takes about 64 kB before any wait.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        close: Callable[[], None],
        headers: Mapping[str, str],
        ping: float,
        patience: float,
    ) -> None:
        self.parts = parts
        self.close = close
        self.ping = ping
        self.patience = patience
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = _Line(send, ping=self.ping, patience=self.patience)
        sending = asyncio.create_task(self._send_all(line))
        others = [asyncio.create_task(disconnected(receive)), asyncio.create_task(line.watch())]
        try:
            await asyncio.wait((sending, *others), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            self.close()
            for task in (sending, *others):
                task.cancel()
            await asyncio.gather(sending, *others, return_exceptions=True)

    async def _send_all(self, line: "_Line") -> None:
        with suppress(OSError):  # the reader is gone
            await line.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _Pump(self.parts, line).run()
            await line.send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pump:
    """Writes what comes when it comes. A task that is woken for each token, and what it goes through until it writes,
    take longer than to write; so there is one only where a reader is slow."""

    def __init__(self, parts: Parts, line: "_Line") -> None:
        self._parts, self._line = parts, line
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held: asyncio.Task[None] | None = None
        """A write that the reader holds up."""

    async def run(self) -> None:
        """Raises what a write raises."""
        self._parts.notify(self._write)
        self._write()
        try:
            await self._ended
        finally:
            if self._held is not None:
                self._held.cancel()

    def _write(self) -> None:
        if self._held is not None or self._ended.done():
            return
        try:
            part = self._parts.take()
            left = begun(self._line.write(part)) if part else None
        except Exception as fault:  # nobody who waits would see it
            self._ended.set_exception(fault)
            return
        if left is None:
            self._go_on()
        else:
            self._held = asyncio.create_task(self._finish(left))

    async def _finish(self, write: Coroutine[Any, Any, None]) -> None:
        try:
            await write
        except Exception as fault:
            if not self._ended.done():
                self._ended.set_exception(fault)
        else:
            self._held = None
            self._go_on()
            self._write()

    def _go_on(self) -> None:
        if self._parts.ended and not self._ended.done():
            self._ended.set_result(None)


def begun(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Runs it, within whichever task, until it waits for something; what is left of it then, for a task of its own. So
    it must not hold on to the task in which it began, as ``asyncio.timeout`` does."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return _rest(work, waits_for)


async def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _handed_on(work, waits_for)


@types.coroutine
def _handed_on(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """``yield from work``, if it had not begun."""
    go_on: Callable[[], Any]
    while True:
        try:
            got = yield waits_for
        except BaseException as thrown:
            go_on = partial(work.throw, thrown)
        else:
            go_on = partial(work.send, got)
        try:
            waits_for = go_on()
        except StopIteration:
            return


class _Line:
    """What one reader is sent. Times are watched beside, since a timer for each token costs more than the token."""

    def __init__(self, send: Send, *, ping: float, patience: float) -> None:
        self._send, self._ping, self._patience = send, ping, patience
        self._writing: float | None = None
        """When the write that goes on began."""
        self._quiet = time.monotonic()
        """When the last one ended."""

    async def write(self, part: bytes) -> None:
        await self.send({"type": "http.response.body", "body": part, "more_body": True})

    async def send(self, message: Message) -> None:
        self._writing = time.monotonic()
        await self._send(message)
        self._writing, self._quiet = None, time.monotonic()

    async def watch(self) -> None:
        """Sends a comment whenever nothing was sent for a while; returns where a write takes too long."""
        while (left := self._left()) > 0:
            await asyncio.sleep(left)
            if self._writing is None and time.monotonic() >= self._quiet + self._ping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._patience):
                        await self.write(_PING)
                        continue
                return

    def _left(self) -> float:
        """Seconds until something has to be looked at; none are left to a write that takes too long."""
        now = time.monotonic()
        if self._writing is not None:
            return self._writing + self._patience - now
        return max(1e-3, min(self._quiet + self._ping - now, self._patience))


async def disconnected(receive: Receive) -> None:
    """Returns when the client went away. Needs the body to be read already."""
    while (await receive())["type"] != "http.disconnect":
        pass
