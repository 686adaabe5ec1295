"""``tune``: trains a backbone's own tensors for one task. ``fit`` is its sibling for adapters on a frozen one.

The given backbone stays as it is; what comes out is another one, derived from it, under an adapter of method ``none``
that holds the output head and the contract.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from umbel.adapters.adapter import Adapter
from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import Checkpointing
from umbel.core.errors import ConfigError, UmbelError
from umbel.core.forms import told
from umbel.core.protocols import RunLog
from umbel.core.settings import Settings
from umbel.training import checkpoint
from umbel.training.allocator import bound_memory
from umbel.training.distributed.group import ALONE, Group
from umbel.training.distributed.load import gathered, load_own
from umbel.training.distributed.strategy import ONE, Strategy
from umbel.training.fitting import RunLogs, Stop, TrainedAdapter, check_dense, train_all
from umbel.training.loop import SAVE_EVERY
from umbel.training.observer import Observer
from umbel.training.passes import Packing
from umbel.training.precision import Caster, Precision, precision_of
from umbel.training.prepared import prepare
from umbel.training.task import Task
from umbel.training.trainee import Trainee, trainee_of
from umbel.training.tuning.derived import derive
from umbel.training.tuning.own import chosen_parameters, own_backbone, trained_parameters, trained_tensors
from umbel.training.window import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A trained backbone and the adapter on it."""

    backbone: Backbone
    """Derived from the given one: in the compute dtype, with a fingerprint of its own, frozen again."""
    changed: frozenset[str]
    """Names, as in a checkpoint, of the tensors that were trained."""
    trained: TrainedAdapter
    """Its adapter, of method ``none``, is bound to the derived backbone."""


def tune(
    backbone: Backbone,
    task: Task,
    *,
    run_log: RunLog | None = None,
    parent: Adapter | None = None,
    folder: Path | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    settings: Settings | None = None,
    packing: Packing | None = None,
    checkpointing: str = "none",
    precision: Precision | None = None,
    group: Group = ALONE,
    strategy: Strategy = ONE,
    save_every: float = SAVE_EVERY,
) -> Tuned:
    """Trains what ``task.train`` selects. ``folder`` keeps checkpoints, and going on from one is ``resume_tuning``.

    ``precision`` stands in for the task's own where a program wants one without a name. Raises ConfigError,
    Interrupted as ``fit`` does. In a ``group`` every process calls this alike, and the first one alone gets the derived
    backbone: the others get what they trained of it.
    """
    settings = settings or Settings.load()
    log = RunLogs(run_log, [task])
    try:
        machine, trainee = start(backbone, task, settings, packing, checkpointing, precision, parent, group, strategy)
    except UmbelError as error:
        log.failed(log.runs[0], task, error)
        raise
    trainee.run = log.runs[0]
    return _finish(machine, trainee, log, folder, observer, stop, save_every)


def resume_tuning(
    backbone: Backbone,
    folder: Path,
    *,
    run_log: RunLog | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    settings: Settings | None = None,
    packing: Packing | None = None,
    checkpointing: str = "none",
    precision: Precision | None = None,
    group: Group = ALONE,
    strategy: Strategy = ONE,
    save_every: float = SAVE_EVERY,
) -> Tuned:
    """Goes on from a folder's newest checkpoint; the result has the same bytes as a run that was never stopped."""
    settings = settings or Settings.load()
    saved = checkpoint.newest(folder)
    (task,) = checkpoint.read_tasks(saved)
    machine, trainee = start(backbone, task, settings, packing, checkpointing, precision, None, group, strategy)
    windows = checkpoint.load(saved, [trainee])
    log = RunLogs(run_log, [task], runs=checkpoint.read_runs(saved))
    return _finish(machine, trainee, log, folder, observer, stop, save_every, windows)


def start(
    backbone: Backbone,
    task: Task,
    settings: Settings,
    packing: Packing | None = None,
    checkpointing: str = "none",
    precision: Precision | None = None,
    parent: Adapter | None = None,
    group: Group = ALONE,
    strategy: Strategy = ONE,
) -> tuple[Machine, Trainee]:
    """A copy of the backbone that is ready to train, and the task on it at step 0.

    Its optimizer is a plain ``torch.optim.AdamW`` over the copy's own parameters and the output head's tensors.
    """
    bound_memory()
    if not task.selection.tunes:
        raise ConfigError(
            f"train = {task.train!r} leaves the backbone frozen.", param="train", hint="train it with fit"
        )
    check_dense(backbone)
    _check_unquantised(backbone)
    chosen = precision or precision_of(task.precision, backbone=backbone.dtype, device=backbone.device)
    prepared = prepare(task, backbone, settings)
    if group.size > 1:
        names = chosen_parameters(backbone.decoder, task.selection)
        own = load_own(backbone, names, chosen, strategy, group)
    else:
        own = own_backbone(backbone, task.selection, chosen)
    trainee = trainee_of(prepared, own, parent, tuned=trained_parameters(own.decoder), precision=chosen)
    return Machine(own, packing or Packing(), Checkpointing.parse(checkpointing), group), trainee


def _check_unquantised(backbone: Backbone) -> None:
    if backbone.quantised is not None:
        raise ConfigError(
            f"{backbone.name} was loaded with {told(backbone.quantised)}, which have no gradient: only adapters train.",
            code="quantised_backbone",
            param="quantise",
            hint="load_backbone(folder), without quantise",
        )


def _finish(
    machine: Machine,
    trainee: Trainee,
    log: RunLogs,
    folder: Path | None,
    observer: Observer | None,
    stop: Stop | None,
    save_every: float,
    windows: int = 0,
) -> Tuned:
    assert trainee.precision is not None
    own, changed, group = machine.backbone, frozenset(trained_tensors(machine.backbone.decoder)), machine.group
    caster = Caster(own.decoder, trainee.precision) if group.size == 1 else None  # FSDP2 casts by itself
    (trained,) = train_all(
        machine, [trainee.task], [trainee], log,
        folder=folder, observer=observer, stop=stop, windows=windows, save_every=save_every,
    )  # fmt: skip
    if caster is not None:
        caster.remove()
    assert trained.adapter is not None
    whole = own if group.size == 1 else gathered(own, trainee.precision.compute, group)
    backbone = derive(whole, trainee.precision.compute, task=trainee.task.name) if group.leads else whole
    bound = replace(trained, adapter=replace(trained.adapter, backbone=backbone.fingerprint))
    return Tuned(backbone=backbone, changed=changed, trained=bound)
