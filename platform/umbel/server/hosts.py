"""Which hosts a request may name. On loopback this keeps web pages out that reach us by a name of their own."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from umbel.core.errors import NotAllowed
from umbel.server.errors import error_reply

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


class HostGuard:
    """Refuses a Host that is not on the list, and a writing request that a page of another origin makes.

    ``allowed`` None takes every Host: then keys stand guard, which no page knows.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str] | None) -> None:
        self.app = app
        self.allowed = None if allowed is None else {host.lower() for host in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (error_reply(refusal)(scope, receive, send) if refusal else self.app(scope, receive, send))

    def _refusal(self, scope: Scope) -> NotAllowed | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.allowed is not None and _name(host) not in self.allowed:
            return NotAllowed(
                "this server does not answer to that host name.",
                code="host_not_allowed",
                hint="ask localhost or 127.0.0.1, or start it with --allow-host NAME",
            )
        if origin and scope["method"] not in _SAFE and urlsplit(origin).netloc.lower() != host.lower():
            return NotAllowed("pages of another origin may not write here.", code="origin_not_allowed")
        return None


def _name(host: str) -> str:
    """Of a Host header: without the port."""
    return (urlsplit(f"//{host}").hostname or "") if host else ""
