"""``/v1/adapters``: the registry to look through, and the few writes that a running server allows."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Query

from umbel.adapters import catalog
from umbel.adapters.difference import WeightChange, compare
from umbel.adapters.peft_io import load_adapter
from umbel.core.contract import OutputHead
from umbel.core.errors import UsageError
from umbel.core.names import CHAMPION
from umbel.core.wire.adapters import (
    AdapterView,
    DiffView,
    ListReply,
    RetireRequest,
    VersionSummary,
    VersionView,
    WeightChangeView,
)
from umbel.registry.query import AdapterQuery, MetricRange
from umbel.registry.records import Scope, VersionState
from umbel.server.security import Publisher, needs
from umbel.server.service import Service, ServiceDep

router = APIRouter(prefix="/v1/adapters", dependencies=[needs(Scope.READ)], tags=["registry"])
writes = APIRouter(prefix="/v1/adapters", dependencies=[needs(Scope.PUBLISH)], tags=["registry"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(max_length=2000)]


async def adapter_query(
    service: ServiceDep,
    search: Annotated[str | None, Query(max_length=200)] = None,
    method: str | None = None,
    output_head: OutputHead | None = None,
    state: VersionState | None = None,
    backbone: str | None = None,
    alias: str | None = None,
    tag: Annotated[list[str] | None, Query(max_length=16)] = None,
    metric: Annotated[list[str] | None, Query(max_length=16)] = None,
    sort: str = "name",
    descending: bool = False,
) -> AdapterQuery:
    """``tag`` is ``key=value`` and ``metric`` ``accuracy>=0.8``, each more than once if need be."""
    if method is not None:
        catalog.method(method)  # raises ConfigError (unknown_method)
    return AdapterQuery(
        search=search,
        method=method,
        output_head=output_head,
        state=state,
        backbone=service.backbone.fingerprint if backbone == service.backbone.name else backbone,
        alias=alias,
        tags=dict(_pair(one) for one in tag or ()),
        metrics=tuple(MetricRange.parse(one) for one in metric or ()),
        sort=sort,
        descending=descending,
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{text!r} is no tag.", code="invalid_tag", param="tag", hint="tag=team=search")
    return key, value


AdapterQueryDep = Annotated[AdapterQuery, Depends(adapter_query)]


@router.get("")
async def list_adapters(
    query: AdapterQueryDep, service: ServiceDep, limit: Limit = 50, cursor: Cursor = None
) -> ListReply[AdapterView]:
    """Search, filter, sort and page; ``next`` is the cursor of the following page."""
    page = await to_thread.run_sync(lambda: service.registry.adapters.list(query, limit=limit, cursor=cursor))
    return ListReply(data=[AdapterView.model_validate(one) for one in page.items], next=page.next)


@router.get("/{name}")
async def show(name: str, service: ServiceDep) -> AdapterView:
    return AdapterView.model_validate(await to_thread.run_sync(service.registry.adapters.get, name))


@router.get("/{name}/versions")
async def versions(
    name: str, service: ServiceDep, state: VersionState | None = None, limit: Limit = 50, cursor: Cursor = None
) -> ListReply[VersionSummary]:
    """Newest first."""
    listing = service.registry.versions.list
    page = await to_thread.run_sync(lambda: listing(name, state=state, limit=limit, cursor=cursor))
    return ListReply(data=[VersionSummary.model_validate(one) for one in page.items], next=page.next)


@router.get("/{name}/versions/{which}")
async def version(name: str, which: str, service: ServiceDep) -> VersionView:
    """``which`` is a number, an alias or a digest."""
    return await _version(service, name, which)


@router.get("/{name}/diff")
async def diff(name: str, before: str, service: ServiceDep, after: str = CHAMPION, weights: bool = False) -> DiffView:
    """What differs between two versions, in words, and if asked in weights by layer."""
    refs = reference(name, before), reference(name, after)
    view = DiffView.model_validate(await to_thread.run_sync(service.registry.versions.diff, *refs))
    if weights:
        view.weights = WeightChangeView.model_validate(await to_thread.run_sync(_weight_change, service, *refs))
    return view


def _weight_change(service: Service, before: str, after: str) -> WeightChange:
    stored = [service.registry.fetch(service.registry.resolve(ref).digest) for ref in (before, after)]
    if any(each.manifest.backbone != service.importer.base.fingerprint for each in stored):
        return WeightChange(why_not="one is made for another backbone than this server's.")
    old, new = (load_adapter(each, service.importer.base.shape) for each in stored)
    return compare(old, new)


@writes.post("/{name}/versions/{which}/yank")
async def yank(name: str, which: str, body: RetireRequest, service: ServiceDep, actor: Publisher) -> VersionView:
    """Refuse it to everybody who does not name its digest."""
    ref = reference(name, which)
    await to_thread.run_sync(lambda: service.registry.versions.yank(ref, reason=body.reason, actor=actor))
    return await _version(service, name, which)


@writes.post("/{name}/versions/{which}/unyank")
async def unyank(name: str, which: str, service: ServiceDep, actor: Publisher) -> VersionView:
    ref = reference(name, which)
    await to_thread.run_sync(lambda: service.registry.versions.unyank(ref, actor=actor))
    return await _version(service, name, which)


async def _version(service: Service, name: str, which: str) -> VersionView:
    found = await to_thread.run_sync(service.registry.versions.get, reference(name, which))
    return VersionView.model_validate(found)


def reference(name: str, which: str) -> str:
    """``3`` to ``name:3``, anything else to ``name@which``."""
    return f"{name}:{which}" if which.isdecimal() else f"{name}@{which}"
