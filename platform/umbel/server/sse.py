"""Server-sent events, as OpenAI's SDK reads them.

    data: {json}\n\n  ...  data: [DONE]\n\n

A failure midway is one ``data:`` object with ``error`` and then the end, without ``[DONE]``. Where nothing happens for
a while, the comment ``: ping`` keeps proxies from closing. A reader that takes nothing for too long is dropped.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from umbel.core.errors import UmbelError
from umbel.server.errors import error_body

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


_ENDS_OF_LINE = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Many clients split lines at these too, which JSON leaves as they are."""


def data(model: BaseModel) -> bytes:
    return f"data: {model.model_dump_json().translate(_ENDS_OF_LINE)}\n\n".encode()


def failure(error: UmbelError) -> bytes:
    return f"data: {json.dumps(error_body(error))}\n\n".encode()


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends ``parts`` as they come; ``close`` is called exactly once, however it ends.

    ``patience``: seconds that one write may wait for a slow reader. uvicorn takes about 64 kB before any wait.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
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
        sending = asyncio.create_task(self._send_all(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            self.close()
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(TimeoutError, OSError):  # a reader that is too slow, or gone
            async for part in with_pings(self.parts, self.ping):
                async with asyncio.timeout(self.patience):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client went away. Needs the body to be read already."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def with_pings(parts: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """``parts``, and a comment whenever none came for so many seconds."""
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(_next(parts))
            done, _ = await asyncio.wait((coming,), timeout=seconds)
            if not done:
                yield b": ping\n\n"
                continue
            part, coming = coming.result(), None
            if not part:
                return
            yield part
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _next(parts: AsyncIterator[bytes]) -> bytes:
    """The next part; empty at the end. A StopAsyncIteration cannot leave a task."""
    return await anext(parts, b"")
