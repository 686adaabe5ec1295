"""``/v1/models``: what ``model`` may be."""

from anyio import to_thread
from fastapi import APIRouter

from umbel.core.wire.base import Model, ModelList
from umbel.registry import Registry
from umbel.registry.query import AdapterQuery
from umbel.registry.records import SERVABLE, Adapter, Scope
from umbel.server.security import needs
from umbel.server.service import ServiceDep
from umbel.server.target import BackboneCard

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.READ)], tags=["models"])

_PAGE = 500


@router.get("/models")
async def models(service: ServiceDep) -> ModelList:
    """The backbone, and every adapter whose bare name can answer here."""
    found = await to_thread.run_sync(servable, service.registry, service.backbone.fingerprint)
    return ModelList(data=[_backbone(service.backbone), *(_adapter(one, service.backbone) for one in found)])


@router.get("/models/{model:path}")
async def model(model: str, service: ServiceDep) -> Model:
    """One of them, by any reference that ``model`` may be."""
    target = await service.targets.find(model)
    if target.adapter is None:
        return _backbone(service.backbone)
    version = await to_thread.run_sync(service.registry.versions.get, f"{target.name}@{target.digest}")
    return Model(
        id=model,
        created=version.created_at // 1000,
        parent=service.backbone.name,
        root=target.shown,
        digest=version.digest,
        output_head=version.output_head,
        method=version.method,
    )


def servable(registry: Registry, backbone: str) -> list[Adapter]:
    """Adapters made for this backbone whose champion can answer."""
    found: list[Adapter] = []
    cursor: str | None = None
    while True:
        page = registry.adapters.list(AdapterQuery(backbone=backbone, alias="champion"), limit=_PAGE, cursor=cursor)
        found += [one for one in page.items if one.shown is not None and one.shown.state in SERVABLE]
        cursor = page.next
        if cursor is None:
            return found


def _backbone(card: BackboneCard) -> Model:
    head = card.contract.output_head
    return Model(
        id=card.name, created=card.loaded_at // 1000, root=card.name, digest=card.fingerprint, output_head=head
    )


def _adapter(found: Adapter, card: BackboneCard) -> Model:
    assert found.shown is not None
    return Model(
        id=found.name,
        created=found.shown.created_at // 1000,
        parent=card.name,
        root=str(found.shown.ref),
        digest=found.shown.digest,
        output_head=found.shown.output_head,
        method=found.shown.method,
    )
