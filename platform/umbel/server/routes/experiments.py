"""``/v1/experiments``: versions that share a name's traffic, and what is known of them so far."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from umbel.core.wire.adapters import ListReply
from umbel.core.wire.experiments import (
    DecideRequest,
    DecisionView,
    ExperimentReport,
    ExperimentSpec,
    ExperimentView,
    RampRequest,
    StopRequest,
)
from umbel.experiments.live import Live, view
from umbel.registry.records import ExperimentStatus, Scope
from umbel.server.security import Promoter, needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1/experiments", dependencies=[needs(Scope.READ)], tags=["experiments"])
writes = APIRouter(prefix="/v1/experiments", dependencies=[needs(Scope.PROMOTE)], tags=["experiments"])

T = TypeVar("T")


@router.get("")
async def list_experiments(
    service: ServiceDep,
    status: ExperimentStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Annotated[str | None, Query(max_length=2000)] = None,
) -> ListReply[ExperimentView]:
    """Newest first."""
    listing = service.registry.experiments.list
    page = await _off_loop(lambda: listing(status=status, limit=limit, cursor=cursor))
    return ListReply(data=[view(one) for one in page.items], next=page.next)


@router.get("/{name}")
async def report(name: str, service: ServiceDep) -> ExperimentReport:
    """Counts, differences with intervals that hold at all looks, the sample-ratio check, and one sentence."""
    return await _off_loop(lambda: Live(service.registry).report(name))


@writes.post("", status_code=201)
async def create(body: ExperimentSpec, service: ServiceDep, actor: Promoter) -> ExperimentView:
    """From now on the name may stand as ``model``."""
    return await _off_loop(lambda: Live(service.registry, actor).create(body))


@writes.post("/{name}/ramp")
async def ramp(name: str, body: RampRequest, service: ServiceDep, actor: Promoter) -> ExperimentView:
    """Open it to another part of the units; nobody who is in changes arm."""
    return await _off_loop(lambda: Live(service.registry, actor).ramp(name, body.share))


@writes.post("/{name}/stop")
async def stop(name: str, body: StopRequest, service: ServiceDep, actor: Promoter) -> ExperimentView:
    """The control answers from now on. Late outcomes still count, and it can still be decided."""
    return await _off_loop(lambda: Live(service.registry, actor).stop(name, body.reason))


@writes.post("/{name}/decide")
async def decide(
    name: str, body: DecideRequest, request: Request, service: ServiceDep, actor: Promoter
) -> DecisionView:
    """Close it with its winner and promote that version. ``force``, which decides without a result, needs admin."""
    if body.force:
        await service.gate.admit(request, Scope.ADMIN)
    return await _off_loop(lambda: Live(service.registry, actor).decide(name, body))


async def _off_loop(work: Callable[[], T]) -> T:
    return await to_thread.run_sync(work)
