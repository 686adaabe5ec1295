"""From a trained adapter to a version: its files, its card, and the check that the files read back as they were."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from umbel.adapters.peft_io import check_effect, export_files, import_folder
from umbel.backbone.backbone import Backbone
from umbel.core.contract import Contract
from umbel.core.errors import AdapterRefused
from umbel.training.card import Effects, Finding, card_of
from umbel.training.fitting import TrainedAdapter

V_co = TypeVar("V_co", covariant=True)


class Publisher(Protocol[V_co]):
    """Whoever keeps versions; ``umbel.registry.Registry`` does."""

    def publish(
        self,
        files: Mapping[str, bytes | Path],
        *,
        name: str,
        method: str,
        config: Mapping[str, Any],
        contract: Contract,
        backbone: str,
        validate: Callable[[Path], None] | None = None,
        run: str | None = None,
        parent: str | None = None,
        dataset: str | None = None,
        metrics: Mapping[str, float] | None = None,
        card: str | None = None,
        seed: int | None = None,
        n_params: int | None = None,
        description: str | None = None,
        crown: bool = True,
    ) -> V_co: ...


def publish(
    publisher: Publisher[V_co],
    trained: TrainedAdapter,
    backbone: Backbone,
    *,
    finding: Finding | None = None,
    effects: Effects | None = None,
    licence: str | None = None,
    allow_noop: bool = False,
    crown: bool = True,
) -> V_co:
    """The new version; ``crown`` lets the first one of a name become its champion.

    Raises AdapterRefused where training left every answer of the backbone as it was.
    """
    adapter = trained.adapter
    assert adapter is not None
    assert trained.prepared is not None
    if not allow_noop:
        check_effect(adapter)
    return publisher.publish(
        export_files(adapter, backbone_name=backbone.name),
        name=trained.task.name,
        method=adapter.method.name,
        config=adapter.config,
        contract=adapter.contract,
        backbone=adapter.backbone,
        validate=_reads_back(trained, backbone),
        run=trained.run or None,
        parent=trained.task.parent,
        dataset=trained.prepared.splits.digest,
        metrics=_metrics(trained, finding, effects),
        card=card_of(trained, backbone=backbone.name, licence=licence, finding=finding, effects=effects),
        seed=trained.task.seed,
        n_params=adapter.num_parameters,
        description=trained.task.description or None,
        crown=crown,
    )


def _reads_back(trained: TrainedAdapter, backbone: Backbone) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert trained.adapter is not None
        again = import_folder(folder, backbone.shape, backbone=backbone.fingerprint)
        for name, tensor in trained.adapter.tensors.items():
            if not again.tensors[name].equal(tensor.cpu().to(again.tensors[name].dtype)):
                raise AdapterRefused(f"tensor {name} does not read back as it was written.", code="not_read_back")

    return check


def _metrics(trained: TrainedAdapter, finding: Finding | None, effects: Effects | None) -> dict[str, float]:
    found = {} if finding is None else {finding.metric: finding.value, **finding.others}
    if effects is not None:
        found |= {"forgetting": effects.forgetting, "probe_accuracy": effects.general}
    if trained.best is not None:
        found |= {"validation_loss": trained.best.loss}
    return found
