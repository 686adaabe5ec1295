"""Aliases over HTTP: where they point, where they have pointed, and moving them."""

from collections.abc import Callable

from anyio import to_thread
from fastapi import APIRouter

from umbel.core.names import CHAMPION
from umbel.core.wire.adapters import AliasEventView, AliasMove, AliasSet, HistoryReply, RollbackRequest
from umbel.registry.records import AliasEvent, Scope
from umbel.server.security import Promoter, needs
from umbel.server.service import Service, ServiceDep

router = APIRouter(prefix="/v1/adapters/{name}", dependencies=[needs(Scope.READ)], tags=["aliases"])
writes = APIRouter(prefix="/v1/adapters/{name}", dependencies=[needs(Scope.PROMOTE)], tags=["aliases"])


@router.get("/aliases")
async def aliases(name: str, service: ServiceDep) -> dict[str, int]:
    """The version number of each alias."""
    return dict(await to_thread.run_sync(service.registry.aliases.get, name))


@router.get("/history")
async def history(name: str, service: ServiceDep, alias: str | None = None) -> HistoryReply:
    """Every move, oldest first."""
    events = await to_thread.run_sync(service.registry.aliases.history, name, alias)
    return HistoryReply(data=[AliasEventView.model_validate(event) for event in events])


@writes.put("/aliases/{alias}")
async def put(name: str, alias: str, body: AliasSet, service: ServiceDep, actor: Promoter) -> AliasEventView:
    """Point an alias at a version; the next request that names it goes there."""
    return await _set(service, name, alias, body, actor)


@writes.post("/promote")
async def promote(name: str, body: AliasSet, service: ServiceDep, actor: Promoter) -> AliasEventView:
    """Make a version the one that the bare name answers with."""
    return await _set(service, name, CHAMPION, body, actor)


@writes.post("/rollback")
async def rollback(
    name: str, service: ServiceDep, actor: Promoter, body: RollbackRequest | None = None
) -> AliasEventView:
    """Point the alias back at the version it had before."""
    told = body or RollbackRequest()
    return await _moved(
        lambda: service.registry.aliases.rollback(name, told.alias, expect=told.expect, reason=told.reason, actor=actor)
    )


@writes.delete("/aliases/{alias}")
async def remove(
    name: str, alias: str, service: ServiceDep, actor: Promoter, body: AliasMove | None = None
) -> AliasEventView:
    told = body or AliasMove()
    return await _moved(
        lambda: service.registry.aliases.remove(name, alias, expect=told.expect, reason=told.reason, actor=actor)
    )


async def _set(service: Service, name: str, alias: str, body: AliasSet, actor: str) -> AliasEventView:
    return await _moved(
        lambda: service.registry.aliases.set(
            f"{name}:{body.version}",
            alias,
            expect=body.expect,
            reason=body.reason,
            evidence=body.evidence,
            actor=actor,
        )
    )


async def _moved(move: Callable[[], AliasEvent]) -> AliasEventView:
    return AliasEventView.model_validate(await to_thread.run_sync(move))
