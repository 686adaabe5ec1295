"""Bounds on what arrives: size of a body and the time it may take. uvicorn has neither."""

import asyncio
import re
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel.core.errors import Interrupted
from umbel.server.errors import TooLarge, TooSlow, error_reply

_UPLOAD = re.compile(r"/v1/adapters/[^/]+/versions")


@dataclass(frozen=True, slots=True)
class Limit:
    bytes: int
    seconds: float
    hint: str
    """What to do about a body that is too large."""

    def too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.bytes} bytes.", hint=self.hint)

    def too_slow(self) -> TooSlow:
        return TooSlow(f"the body did not arrive within {self.seconds:g} seconds.", hint="send it again")


class BodyLimits:
    """Reads a request's body whole, under both bounds, before anything else runs.

    After the body the connection is still listened to, so that a client that goes away is noticed. Uploads of
    adapters have bounds of their own and are handed on as they arrive: their route looks at the key first.
    """

    def __init__(self, app: ASGIApp, *, body: Limit, upload: Limit) -> None:
        self.app = app
        self.body = body
        self.upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = self.upload if is_upload(scope) else self.body
        try:
            _check_declared(scope, limit)
            arriving = _Arriving(receive, limit)
            handed_on = arriving if limit is self.upload else _replay(await _whole(arriving), receive)
        except (TooLarge, TooSlow) as error:
            return await error_reply(error, {"connection": "close"})(scope, receive, send)
        except Interrupted:
            return None
        return await self.app(scope, handed_on, send)


def is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and _UPLOAD.fullmatch(scope["path"]) is not None


def _check_declared(scope: Scope, limit: Limit) -> None:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > limit.bytes:
        raise limit.too_large()


@dataclass(slots=True)
class _Arriving:
    """``receive`` under both bounds. Raises TooLarge or TooSlow while there is more of the body."""

    receive: Receive
    limit: Limit
    size: int = 0
    whole: bool = False
    began: float = field(default_factory=time.monotonic)

    async def __call__(self) -> Message:
        if self.whole:
            return await self.receive()
        try:
            async with asyncio.timeout(self.began + self.limit.seconds - time.monotonic()):
                message = await self.receive()
        except TimeoutError:
            raise self.limit.too_slow() from None
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.size > self.limit.bytes:
            raise self.limit.too_large()
        return message


async def _whole(arriving: _Arriving) -> bytes:
    parts: list[bytes] = []
    while not arriving.whole:
        message = await arriving()
        if message["type"] == "http.disconnect":
            raise Interrupted("the client went away.")
        parts.append(message.get("body", b""))
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
