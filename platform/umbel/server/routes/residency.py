"""Which adapters the engine holds: loaded before the first request, or dropped, by hand."""

import asyncio

from anyio import to_thread
from fastapi import APIRouter, Request

from umbel.core.errors import Unavailable
from umbel.core.wire.residency import Residency, UnloadRequest, WarmRequest, Which
from umbel.registry.records import Scope
from umbel.server.routes.adapters import reference
from umbel.server.rows import unless_gone
from umbel.server.security import needs
from umbel.server.service import ServiceDep, shutting_down

router = APIRouter(prefix="/v1/adapters/{name}", dependencies=[needs(Scope.PUBLISH)], tags=["registry"])


@router.post("/warm")
async def warm(name: str, request: Request, service: ServiceDep, body: WarmRequest | None = None) -> Residency:
    """Load a version and wait until it is resident, so that nobody's first request waits for it."""
    body = body or WarmRequest()
    if service.draining:
        raise shutting_down()
    target = await service.targets.find(_ref(name, body.version))
    loading = asyncio.wait_for(service.engine.warm(target.digest), body.timeout)
    try:
        changed = await unless_gone(request, loading)
    except TimeoutError:
        raise Unavailable(
            f"{target.shown} was not resident after {body.timeout:g} seconds.",
            code="warm_timeout",
            hint="ask again, with a longer timeout; umbel ps shows what the server is busy with",
        ) from None
    return Residency(adapter=target.shown, digest=target.digest, resident=True, changed=changed)


@router.post("/unload")
async def unload(name: str, service: ServiceDep, body: UnloadRequest | None = None) -> Residency:
    """Free a version's memory, whatever its state; 409 while requests wear it. The next request loads it anew."""
    body = body or UnloadRequest()
    found = await to_thread.run_sync(service.registry.versions.get, _ref(name, body.version))
    changed = await service.engine.unload(found.digest)
    return Residency(adapter=str(found.ref), digest=found.digest, resident=False, changed=changed)


def _ref(name: str, version: Which) -> str:
    return reference(name, str(version))
