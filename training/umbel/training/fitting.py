"""``fit``: from tasks to trained adapters, all of them in shared passes over one frozen backbone."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from umbel.adapters.adapter import Adapter
from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import Checkpointing
from umbel.backbone.linears import PackedLinear
from umbel.backbone.quantised import quantised_tensors
from umbel.core.errors import ConfigError, Interrupted, UmbelError
from umbel.core.forms import read_form, told
from umbel.core.protocols import RunLog
from umbel.core.settings import Settings
from umbel.core.validation import told as told_by
from umbel.training import checkpoint
from umbel.training.allocator import bound_memory
from umbel.training.distributed.group import ALONE, Group, mate_gone
from umbel.training.loop import SAVE_EVERY, Loop
from umbel.training.observer import LogObserver, Observer, Observers
from umbel.training.passes import Packing
from umbel.training.plan import TaskPlan, plan_fit
from umbel.training.prepared import Prepared, Preparing
from umbel.training.sweep.halving import Halving
from umbel.training.task import Task
from umbel.training.trainee import Status, Trainee, Validation, trainee_of
from umbel.training.trunk.choice import choose_cut, open_trunk
from umbel.training.window import Machine

if TYPE_CHECKING:
    from umbel.training.sweep.sweeping import Sweep

Stop = Callable[[], str | None]
"""Asked before every step: None, or why to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """What became of one task. Where it failed ``adapter`` is None and ``error`` says why."""

    task: Task
    adapter: Adapter | None
    error: UmbelError | None = None
    prepared: Prepared | None = None
    """None where the data themselves were wrong."""
    plan: TaskPlan | None = None
    status: Status = Status.FAILED
    run: str = ""
    """Id in the run log."""
    steps: int = 0
    tokens: int = 0
    losses: tuple[float, ...] = ()
    history: tuple[Validation, ...] = ()
    frozen: str = ""
    """sha256 of the backbone's bytes in memory: the same before and after."""
    rungs: tuple[Validation, ...] = ()
    sweep: "Sweep | None" = None
    """The others, where it won a sweep."""

    @property
    def best(self) -> Validation | None:
        """The validation whose tensors the adapter has; None where there were no validation rows."""
        return min(self.history, key=lambda each: each.order, default=None)


def fit(
    backbone: Backbone,
    tasks: Sequence[Task],
    *,
    run_log: RunLog | None = None,
    parents: Mapping[str, Adapter] | None = None,
    folder: Path | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    settings: Settings | None = None,
    packing: Packing | None = None,
    checkpointing: str = "none",
    group: Group = ALONE,
    save_every: float = SAVE_EVERY,
    halving: Halving | None = None,
) -> list[TrainedAdapter]:
    """Trains every task's adapter and returns them in the order of the tasks.

    ``parents`` are adapters to continue from, by the task's name; ``Task.parent`` only says which they are.
    A task that fails leaves alone and the others go on; if all fail, the first one's error is raised. ``folder``
    keeps checkpoints for ``resume``, one each ``save_every`` seconds. ``checkpointing`` (none, full, every=2,
    selective) trades time for memory. In a ``group`` every process calls this alike and has the same result; run log,
    observer and folder are the first one's business.

    ``halving`` lets a sweep's poorer half leave at each rung.

    Raises Interrupted where ``stop`` gives a reason or the run log was cancelled.
    """
    bound_memory()
    settings = settings or Settings.load()
    _check_names(tasks)
    check_dense(backbone)
    check_forms(tasks, backbone)
    _check_frozen(tasks)
    prepare = Preparing(backbone, settings)
    shared = halving is not None  # they train on the same rows
    started = [_start(task, prepare, (parents or {}).get(task.name), shared) for task in tasks]
    log = RunLogs(run_log, tasks)
    for trainee, run, task in zip(started, log.runs, tasks, strict=True):
        if isinstance(trainee, Trainee):
            trainee.run = run
        else:
            log.failed(run, task, trainee)
    if not any(isinstance(each, Trainee) for each in started):
        raise next(each for each in started if isinstance(each, UmbelError))
    machine = Machine(
        backbone, packing or Packing(), Checkpointing.parse(checkpointing), group, open_trunk(backbone, settings)
    )
    return train_all(
        machine, tasks, started, log,
        folder=folder, observer=observer, stop=stop, save_every=save_every, halving=halving,
    )  # fmt: skip


def resume(
    backbone: Backbone,
    folder: Path,
    *,
    run_log: RunLog | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    settings: Settings | None = None,
    packing: Packing | None = None,
    checkpointing: str = "none",
    group: Group = ALONE,
    save_every: float = SAVE_EVERY,
    halving: Halving | None = None,
) -> list[TrainedAdapter]:
    """Goes on from a folder's newest checkpoint; the result has the same bytes as a run that was never stopped.

    The number of processes may be another than before.
    """
    bound_memory()
    settings = settings or Settings.load()
    check_dense(backbone)
    saved = checkpoint.newest(folder)
    tasks = checkpoint.read_tasks(saved)
    check_forms(tasks, backbone)
    prepare = Preparing(backbone, settings)
    trainees = [trainee_of(prepare(task), backbone) for task in tasks]
    windows = checkpoint.load(saved, trainees)
    log = RunLogs(run_log, tasks, runs=checkpoint.read_runs(saved))
    machine = Machine(
        backbone, packing or Packing(), Checkpointing.parse(checkpointing), group, open_trunk(backbone, settings)
    )
    return train_all(
        machine, tasks, trainees, log,
        folder=folder, observer=observer, stop=stop, windows=windows, save_every=save_every, halving=halving,
    )  # fmt: skip


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    if not names:
        raise ConfigError("there is no task to train.", code="no_tasks", hint="umbel train --name ... --data ...")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two tasks are called {double!r}.", param="name", hint="give each its own --name")


def _check_frozen(tasks: Sequence[Task]) -> None:
    if own := next((task for task in tasks if task.selection.tunes), None):
        raise ConfigError(
            f"{own.name} trains the backbone's own tensors (train = {own.train!r}), so it shares none with others.",
            code="trains_alone",
            param="train",
            hint="train it alone; in Python with umbel.training.tune(backbone, task)",
        )


def check_dense(backbone: Backbone) -> None:
    if any(isinstance(module, PackedLinear) for module in backbone.decoder.modules()):
        raise ConfigError(
            f"backbone {backbone.name} was loaded for serving: its packed weights have no gradient.",
            code="packed_backbone",
            hint="load_backbone(folder, packed=False)",
        )


def check_forms(tasks: Sequence[Task], backbone: Backbone) -> None:
    """One backbone in memory has one form: raises ConfigError for a task that wants another."""
    for task in tasks:
        if task.quantise is not None and read_form(task.quantise) != backbone.quantised:
            raise ConfigError(
                f"{task.name} wants quantise = {task.quantise!r}; {backbone.name} was loaded with "
                f"{told(backbone.quantised)}.",
                code="other_form",
                param="quantise",
                hint="tasks that train together have one form; in Python load_backbone(folder, quantise=...)",
            )


def _start(task: Task, prepare: Preparing, parent: Adapter | None, shared: bool) -> Trainee | UmbelError:
    try:
        trainee = trainee_of(prepare(task), prepare.backbone, parent)
        trainee.cut = choose_cut(trainee, prepare.backbone, prepare.settings, again=shared)
        if shared and not trainee.prepared.validation.examples:
            raise _nothing_to_compare()
        return trainee
    except UmbelError as error:
        return error
    except ValidationError as error:  # of the contract that the rows make
        return told_by(error)


def _nothing_to_compare() -> ConfigError:
    return ConfigError(
        "a sweep chooses by the validation loss, and there are no validation rows.",
        code="nothing_to_compare",
        param="validation_fraction",
        hint="give --validation FILE, or a --validation-fraction above 0",
    )


class RunLogs:
    """A run log that may be missing: one run per task."""

    def __init__(self, log: RunLog | None, tasks: Sequence[Task], runs: Sequence[str] | None = None) -> None:
        self.log = log
        self.runs = list(runs) if runs is not None else [self._open(task) for task in tasks]

    def _open(self, task: Task) -> str:
        return "" if self.log is None else self.log.start(name=task.name, params=task.as_json(), seed=task.seed)

    def failed(self, run: str, task: Task, error: UmbelError) -> None:
        if self.log is not None:
            self.log.finish(run, status="failed", error=f"{task.name}: {error}")

    @contextmanager
    def telling_the_end(self, trainees: Sequence[Trainee]) -> Iterator[None]:
        """Runs that something unforeseen ended are not left open; stopped ones stay open, to be resumed."""
        try:
            yield
        except Interrupted as stopped:
            for trainee in trainees:
                self._stopped(trainee, stopped)
            raise
        except Exception as error:
            if mate_gone(error):  # its checkpoint is there: torchrun or --resume goes on
                raise
            for trainee in trainees:
                if self.log is not None and trainee.active:
                    self.log.finish(trainee.run, status="failed", error=f"{type(error).__name__}: {error}")
            raise

    def _stopped(self, trainee: Trainee, stopped: Interrupted) -> None:
        if self.log is None or not trainee.active:
            return
        if self.log.cancelled(trainee.run):
            self.log.finish(trainee.run, status="cancelled", summary={"steps": trainee.step})
        else:
            self.log.event(trainee.run, str(stopped), level="warning")

    def observers(self, observer: Observer | None) -> Observer:
        logged = [LogObserver(self.log)] if self.log is not None else []
        return Observers([*logged, *([observer] if observer else [])])

    def stop(self, asked: Stop | None) -> Stop:
        """Also where somebody cancelled one of the runs: they share their passes, so all stop."""

        def why() -> str | None:
            if asked is not None and (reason := asked()):
                return reason
            if self.log is not None and any(self.log.cancelled(run) for run in self.runs):
                return "cancelled"
            return None

        return why


def train_all(
    machine: Machine,
    tasks: Sequence[Task],
    started: Sequence[Trainee | UmbelError],
    log: RunLogs,
    *,
    folder: Path | None,
    observer: Observer | None,
    stop: Stop | None,
    windows: int = 0,
    save_every: float = SAVE_EVERY,
    halving: Halving | None = None,
) -> list[TrainedAdapter]:
    """What ``fit``, ``resume`` and ``tuning`` have in common: the plan, the loop, the frozen rule, the results."""
    trainees = [each for each in started if isinstance(each, Trainee)]
    for trainee in trainees if machine.group.size > 1 else ():
        trainee.cut = None  # every process runs the same number of passes, whatever its disk holds
    plan = plan_fit(trainees, machine, halving)
    told = log.observers(observer)
    told.planned(plan)
    before = frozen_digest(machine.backbone)
    loop = Loop(
        machine,
        trainees,
        observer=told,
        folder=folder,
        stop=log.stop(stop),
        windows=windows,
        save_every=save_every,
        halving=halving,
    )
    with log.telling_the_end(trainees):
        loop.run()
    assert frozen_digest(machine.backbone) == before, "training changed the frozen backbone"
    plans = dict(zip((task.name for task in plan.tasks), plan.tasks, strict=True))
    found = [_trained(task, each, plans.get(task.name), before) for task, each in zip(tasks, started, strict=True)]
    if all(each.adapter is None for each in found):
        raise next(each.error for each in found if each.error is not None)
    return found


def _trained(task: Task, started: Trainee | UmbelError, plan: TaskPlan | None, frozen: str) -> TrainedAdapter:
    if isinstance(started, UmbelError):
        return TrainedAdapter(task=task, adapter=None, error=started)
    failed = started.status is Status.FAILED
    if not failed:
        started.finish()
    return TrainedAdapter(
        task=task,
        adapter=None if failed else started.adapter,
        error=started.error,
        prepared=started.prepared,
        plan=plan,
        status=started.status,
        run=started.run,
        steps=started.step,
        tokens=started.tokens,
        losses=tuple(started.losses),
        history=tuple(started.history),
        frozen=frozen,
        rungs=tuple(started.rungs),
    )


def frozen_digest(backbone: Backbone) -> str:
    """sha256 over the bytes of every weight in memory that is not being trained, as they are held now; of a shard,
    this process's part."""
    digest = hashlib.sha256()
    for module in backbone.decoder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    frozen = [tensor for _, tensor in sorted(backbone.decoder.named_parameters()) if not tensor.requires_grad]
    for tensor in [*frozen, *quantised_tensors(backbone.decoder)]:
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        digest.update(held.detach().contiguous().cpu().view(torch.uint8).flatten().numpy().data)
    return digest.hexdigest()
