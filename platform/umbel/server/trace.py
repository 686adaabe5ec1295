"""Around every request: its id, the errors nobody caught, one line of log, and its place in the metrics."""

import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel.core.errors import UmbelError
from umbel.server.errors import error_reply
from umbel.server.service import Service

log = logging.getLogger("umbel.server")

PROBES = ("/health", "/ready", "/metrics")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
GONE = 499
"""The status that is counted where the client went away before the answer."""


@dataclass(slots=True)
class _Seen:
    """What is known of one request so far."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = GONE
    adapter: str = "-"


class Trace:
    """Outermost, so that refusals of the other layers are seen too."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = _Seen(_request_id(Headers(scope=scope)))
        state = scope.setdefault("state", {})
        state["request_id"] = seen.id
        counted = scope["path"] not in PROBES
        self.service.in_flight += counted
        try:
            await self.app(scope, receive, _noting(send, seen))
        except Exception:
            log.exception("%s failed", seen.id)
            if seen.status == GONE:
                await error_reply(UmbelError("failed"))(scope, receive, _noting(send, seen))
        finally:
            self.service.in_flight -= counted
            self._count(scope, seen)
            self.service.guardrails.note(state.get("caller"), seen.status)
        return None

    def _count(self, scope: Scope, seen: _Seen) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # never the path itself: labels must stay few
        took = time.perf_counter() - seen.started
        self.service.metrics.requests.labels(route, scope["method"], str(seen.status)).inc()
        self.service.metrics.latency.labels(route).observe(took)
        level = logging.DEBUG if route in PROBES else logging.INFO
        what = (scope["method"], scope["path"], seen.status, 1e3 * took, seen.adapter, seen.id)
        log.log(level, "%s %s %s %.0f ms %s %s", *what)


def _request_id(headers: Headers) -> str:
    """The caller's own id if it is a plain word, so that both logs can be joined; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


def _noting(send: Send, seen: _Seen) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = seen.id
            seen.status, seen.adapter = message["status"], headers.get("x-umbel-adapter", "-")
        await send(message)

    return noting
