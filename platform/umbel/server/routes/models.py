"""``/v1/models``: what ``model`` may be."""

from anyio import to_thread
from fastapi import APIRouter

from umbel.core.wire.base import Model, ModelList
from umbel.experiments.live import answering
from umbel.registry import Registry
from umbel.registry.query import AdapterQuery
from umbel.registry.records import SERVABLE, Adapter, Experiment, ExperimentStatus, Scope, Version
from umbel.server.security import needs
from umbel.server.service import ServiceDep
from umbel.server.target import BackboneCard

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.READ)], tags=["models"])

_PAGE = 500


@router.get("/models")
async def models(service: ServiceDep) -> ModelList:
    """The backbone, every adapter whose bare name can answer here, and the experiments that run."""
    card = service.backbone
    found = await to_thread.run_sync(servable, service.registry, card.fingerprint)
    shared = await to_thread.run_sync(running, service.registry, card.fingerprint)
    entries = [*(_adapter(one, card) for one in found), *(_experiment(*one, card) for one in shared)]
    return ModelList(data=[_backbone(card), *entries])


@router.get("/models/{model:path}")
async def model(model: str, service: ServiceDep) -> Model:
    """One of them, by any reference that ``model`` may be."""
    if experiment := await service.targets.enroller.find(model):
        control = await to_thread.run_sync(_control, service.registry, experiment)
        return _experiment(experiment, control, service.backbone)
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
        state=version.state,
        reason=version.reason,
        quantised=version.contract.quantised,
    )


def servable(registry: Registry, backbone: str | None) -> list[Adapter]:
    """Adapters made for this backbone, or for any, whose champion can answer."""
    found: list[Adapter] = []
    cursor: str | None = None
    while True:
        page = registry.adapters.list(AdapterQuery(backbone=backbone, alias="champion"), limit=_PAGE, cursor=cursor)
        found += [one for one in page.items if one.shown is not None and one.shown.state in SERVABLE]
        cursor = page.next
        if cursor is None:
            return found


def running(registry: Registry, backbone: str) -> list[tuple[Experiment, Version]]:
    """Experiments that assign units on this backbone, each with its control."""
    found: list[tuple[Experiment, Version]] = []
    cursor: str | None = None
    while True:
        page = registry.experiments.list(status=ExperimentStatus.RUNNING, limit=_PAGE, cursor=cursor)
        found += [(one, _control(registry, one)) for one in page.items]
        cursor = page.next
        if cursor is None:
            return [(one, control) for one, control in found if control.backbone == backbone]


def _control(registry: Registry, experiment: Experiment) -> Version:
    ref = experiment.arms[0].version
    return registry.versions.get(f"{ref.name}@{ref.digest}")


def _experiment(found: Experiment, control: Version, card: BackboneCard) -> Model:
    is_running = found.status == ExperimentStatus.RUNNING
    return Model(
        id=found.name,
        created=found.created_at // 1000,
        parent=card.name,
        root=None if is_running else str(answering(found)),
        output_head=control.output_head,
        arms={arm.name: str(arm.version) for arm in found.arms} if is_running else None,
    )


def _backbone(card: BackboneCard) -> Model:
    head = card.contract.output_head
    return Model(
        id=card.name,
        created=card.loaded_at // 1000,
        root=card.name,
        digest=card.fingerprint,
        output_head=head,
        quantised=card.quantised,
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
        state=found.shown.state,
        reason=found.shown.reason,
        quantised=found.shown.contract.quantised,
    )
