"""Who may do what: every route states a scope, and ``require_scopes`` refuses to start an app that has one without.

On loopback without ``--require-keys``, answering and reading are free; whatever changes the registry needs a key all
the same, since every process and page of the machine reaches loopback.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from anyio import to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute

from umbel.core.errors import AuthError, NotAllowed, UsageError
from umbel.core.wire.base import SEND_KEY
from umbel.registry.records import ApiKey, Scope
from umbel.server.hosts import is_loopback
from umbel.server.queries import check_query

FREE_ON_LOOPBACK = (Scope.INFER, Scope.READ)
PUBLIC = ("/health", "/ready", "/openapi.json")
"""Paths that need no key anywhere: probes, and what tells how to ask."""
_REMEMBERED_SECONDS = 5.0
"""How long a revoked key may still work."""
_MOST_REMEMBERED = 1024


class KeyRing(Protocol):
    def check(self, secret: str, scope: Scope | None = None) -> ApiKey: ...

    def list(self) -> tuple[ApiKey, ...]: ...


ANONYMOUS = ""
"""The tenant of all who need no key."""


class Gate:
    """Checks keys; remembers good ones for a few seconds by their hash, never by themselves."""

    def __init__(self, keys: KeyRing, *, free: tuple[Scope, ...]) -> None:
        self.keys = keys
        self.free = free
        self._good: dict[bytes, tuple[float, ApiKey]] = {}

    async def admit(self, request: Request, scope: Scope) -> str:
        """Returns who asks, for the audit log, and notes the tenant. Raises AuthError or NotAllowed."""
        secret, request.state.tenant = _secret(request), ANONYMOUS
        if scope in self.free:
            return "anonymous"
        if secret is None:
            raise AuthError(
                "this request needs an API key.",
                code="missing_api_key",
                hint=f"{SEND_KEY}; umbel keys create NAME --scope {scope} makes one",
            )
        key = await self._check(secret)
        if not key.may(scope):
            raise NotAllowed(
                f"the key {key.name!r} lacks the scope {scope}.", hint=f"umbel keys create NAME --scope {scope}"
            )
        request.state.tenant = key.id
        return f"key:{key.name}"

    async def _check(self, secret: str) -> ApiKey:
        mark = hashlib.sha256(secret.encode()).digest()
        at, key = self._good.get(mark, (0.0, None))
        if key is not None and time.monotonic() - at < _REMEMBERED_SECONDS:
            return key
        key = await to_thread.run_sync(self.keys.check, secret)
        if len(self._good) >= _MOST_REMEMBERED:
            self._good.clear()
        self._good[mark] = (time.monotonic(), key)
        return key


def _secret(request: Request) -> str | None:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() or None if kind.lower() == "bearer" else None


@dataclass(frozen=True, slots=True)
class Needs:
    """The dependency that a route states its scope by; who may ask is told which parameters there are."""

    scope: Scope

    async def __call__(self, request: Request) -> str:
        gate: Gate = request.app.state.service.gate
        request.state.actor = await gate.admit(request, self.scope)
        check_query(request)
        return str(request.state.actor)


def tenant_of(request: Request) -> str:
    """Whose keys and values of prompts it may share: its API key's id (a name can be given again). Without a key all
    are one tenant."""
    return str(request.state.tenant)


def needs(scope: Scope) -> Any:
    """For ``dependencies=[...]`` of a router or route."""
    return Depends(Needs(scope))


Promoter = Annotated[str, Depends(Needs(Scope.PROMOTE))]
"""Who asks, on routes that move what the bare name answers with."""
Publisher = Annotated[str, Depends(Needs(Scope.PUBLISH))]


def scope_of(route: APIRoute) -> Scope | None:
    found = (dependency.call for dependency in route.dependant.dependencies)
    return next((call.scope for call in found if isinstance(call, Needs)), None)


def require_scopes(app: FastAPI) -> None:
    """Deny by default: a route without a scope is our own mistake, found before the first request."""
    for path, scope in scopes(app):
        assert scope is not None or path in PUBLIC, f"{path} states no scope"


def scopes(app: FastAPI) -> Iterator[tuple[str, Scope | None]]:
    """Path and scope of every route there is."""
    for route in app.routes:
        yield getattr(route, "path", "?"), scope_of(route) if isinstance(route, APIRoute) else None


def check_binding(host: str, keys: KeyRing) -> None:
    """Beyond loopback everybody reaches the server: refuse to start without a key that anybody could use."""
    usable = any(key.revoked_at is None for key in keys.list())
    if not is_loopback(host) and not usable:
        raise UsageError(
            f"--host {host} lets other machines in, and there is no API key.",
            code="keys_required",
            hint="umbel keys create NAME --scope infer, then start again; or leave --host at 127.0.0.1",
        )
