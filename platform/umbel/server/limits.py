"""Bounds on what arrives: size of a body and the time it may take. uvicorn has neither."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel.core.errors import Interrupted
from umbel.server.errors import TooLarge, TooSlow, error_reply


class BodyLimits:
    """Reads a request's body whole, under both bounds, before anything else runs.

    After the body the connection is still listened to, so that a client that goes away is noticed.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await self._body(scope, receive)
        except (TooLarge, TooSlow) as error:
            return await error_reply(error, {"connection": "close"})(scope, receive, send)
        except Interrupted:
            return None
        return await self.app(scope, _replay(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.seconds):
                return await self._read(receive)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {self.seconds:g} seconds.", hint="send it again") from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Interrupted("the client went away.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is larger than {self.max_bytes} bytes.",
            hint="send fewer or shorter texts, or start the server with --max-body-bytes",
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
