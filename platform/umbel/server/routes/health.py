"""``/health`` (the process lives), ``/ready`` (send requests), ``/metrics`` and ``/v1/status``."""

import time
from importlib.metadata import version

from anyio import to_thread
from fastapi import APIRouter, Response

from umbel.core.errors import UmbelError
from umbel.core.wire.server import Ready, Status
from umbel.registry.records import Scope
from umbel.server.answers import reply
from umbel.server.security import needs
from umbel.server.service import Service, ServiceDep

public = APIRouter(tags=["probes"])
router = APIRouter(dependencies=[needs(Scope.READ)], tags=["probes"])


@public.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@public.get("/ready", response_model=Ready)
async def ready(service: ServiceDep) -> Response:
    """503 while draining. A database that is down is told, but what is resident answers on."""
    state = Ready(ready=not service.draining, reasons=["the server is shutting down"] if service.draining else [])
    if state.ready and (problem := await to_thread.run_sync(_registry_problem, service)):
        state.reasons.append(problem)
    return reply(state, status=200 if state.ready else 503)


def _registry_problem(service: Service) -> str | None:
    try:
        service.registry.backbones.list()
    except UmbelError as error:
        return error.code
    return None


@router.get("/metrics")
async def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/status")
async def status(service: ServiceDep) -> Status:
    """What ``umbel ps`` shows."""
    stats, card = service.engine.stats(), service.backbone
    return Status(
        backbone=card.name,
        fingerprint=card.fingerprint,
        dtype=card.dtype,
        quantised=card.quantised,
        version=version("umbel"),
        uptime_seconds=round(time.monotonic() - service.started, 1),
        draining=service.draining,
        running=stats.running,
        waiting=stats.waiting,
        max_rows=service.capacity.max_rows,
        kv_bytes=service.capacity.kv_bytes,
        kv_bytes_used=stats.kv_bytes_reserved,
        adapter_bytes=service.capacity.adapter_bytes,
        adapter_bytes_used=stats.adapter_bytes,
        adapters_worn=stats.adapters_worn,
        adapters_loading=stats.adapters_loading,
        evictions=stats.evictions,
        finished=stats.finished,
        resident=[service.targets.resident(digest) for digest in stats.adapters],
    )
