"""What a training will do, told before the first step: rows, tokens, steps, memory, time, learning rate and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from umbel.adapters import catalog
from umbel.backbone.backbone import Backbone
from umbel.core.contract import OutputHead
from umbel.core.forms import Form
from umbel.training.data.source import balance
from umbel.training.estimate.pace import seconds_to_train
from umbel.training.estimate.peak import peak_bytes
from umbel.training.passes import Packing, pack, padding
from umbel.training.schedule import TUNING_RATE
from umbel.training.trainee import Trainee
from umbel.training.trunk.choice import kept_bytes
from umbel.training.tuning.memory import Held, saved_by_freezing
from umbel.training.window import Machine

if TYPE_CHECKING:
    from umbel.training.sweep.halving import Halving


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """One adapter's share of the plan. Rows and tokens are exact, not estimates."""

    name: str
    data: str
    method: str
    output_head: OutputHead
    train_rows: int
    validation_rows: int
    test_rows: int
    tokens: int
    """Of one pass over the training rows, padding and virtual tokens not counted."""
    total_tokens: int
    """Of all steps."""
    supervised: int
    """Places or rows with a loss, of one pass over the training rows."""
    longest: int
    truncated: int
    """Training rows that are cut."""
    left_out: int
    """Training rows that are too long."""
    leaks: int
    balance: dict[str, int]
    """Training rows of each label."""
    parameters: int
    steps: int
    epochs: float
    batch_size: int
    lr: float
    lr_why: str
    metric: str
    padding: float
    """Share of the places of a pass that hold no token, over the first steps."""
    trains: str = "adapter"
    """As ``Task.train``."""
    backbone_parameters: int = 0
    """Of the backbone's own, those that are trained."""
    precision: str | None = None
    """Of a trained backbone."""
    kept_layers: int = 0
    """Layers whose result is computed once per row and kept."""
    kept_bytes: int = 0
    """What those results take on disk."""
    freezing_saves: Held | None = None
    """Memory that a training of the whole backbone would take beyond this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    tasks: tuple[TaskPlan, ...]
    backbone: str
    dtype: str
    device: str
    quantised: Form | None
    threads: int
    memory: int
    """Bytes that this process will hold at most, estimated."""
    processes: int
    seconds: float
    """From the first step to the end, validation included, judging not; some windows were tried."""
    sweep: "Halving | None" = None
    """Who leaves when, where the tasks are the candidates of one."""


def plan_fit(trainees: Sequence[Trainee], machine: Machine, halving: "Halving | None" = None) -> FitPlan:
    backbone, packing = machine.backbone, machine.packing
    tasks = tuple(plan_task(trainee, backbone, packing) for trainee in trainees)
    return FitPlan(
        tasks=tasks,
        backbone=backbone.name,
        dtype=str(backbone.dtype).removeprefix("torch."),
        device=str(backbone.device),
        quantised=backbone.quantised,
        threads=torch.get_num_threads(),
        processes=machine.group.size,
        memory=peak_bytes(trainees, machine),  # before any window is tried: it looks at what is held now
        seconds=seconds_to_train(trainees, machine, halving),
        sweep=halving,
    )


def plan_task(trainee: Trainee, backbone: Backbone, packing: Packing) -> TaskPlan:
    prepared, task = trainee.prepared, trainee.task
    examples = prepared.train.examples
    lengths = [example.tokens for example in examples]
    batches, steps = trainee.batches, trainee.schedule.steps
    return TaskPlan(
        name=task.name,
        data=prepared.splits.name,
        method=task.method,
        output_head=task.output_head,
        train_rows=len(examples),
        validation_rows=len(prepared.validation.examples),
        test_rows=len(prepared.test),
        tokens=sum(lengths),
        total_tokens=sum(lengths[place] for step in range(steps) for place in batches.at(step)),
        supervised=sum(example.count for example in examples),
        longest=max(example.longest for example in examples),
        truncated=prepared.train.truncated,
        left_out=prepared.train.left_out,
        leaks=prepared.splits.leaks,
        balance=balance(prepared.splits.train, prepared.contract.labels),
        parameters=sum(tensor.numel() for tensor in trainee.trained.values()),
        steps=steps,
        epochs=steps / batches.per_epoch,
        batch_size=task.batch_size,
        lr=trainee.schedule.peak,
        lr_why=_why(trainee, backbone),
        metric=prepared.metric,
        padding=_padding(trainee, packing),
        trains=task.train,
        backbone_parameters=sum(tensor.numel() for tensor in trainee.tuned.values()),
        precision=None if trainee.precision is None else trainee.precision.name,
        freezing_saves=_saved(trainee, backbone, packing),
        kept_layers=0 if trainee.cut is None else trainee.cut.layer,
        kept_bytes=0 if trainee.cut is None else kept_bytes(trainee, trainee.cut, backbone),
    )


def _saved(trainee: Trainee, backbone: Backbone, packing: Packing) -> Held | None:
    if trainee.precision is None:
        return None
    places = min(packing.tokens, _places(trainee))
    return saved_by_freezing(backbone, list(trainee.tuned), trainee.precision, places)


def _why(trainee: Trainee, backbone: Backbone) -> str:
    if trainee.task.lr is not None:
        return "given"
    if trainee.tuned:
        return f"a backbone's own {TUNING_RATE:g} x (2000 / hidden {backbone.shape.hidden}) ** 0.781"
    base = catalog.method(trainee.task.method).learning_rate
    return f"{trainee.task.method}'s {base:g} x (2000 / hidden {backbone.shape.hidden}) ** 0.781"


def _padding(trainee: Trainee, packing: Packing) -> float:
    steps = range(min(8, trainee.schedule.steps))
    batches = [[trainee.prepared.train.examples[i] for i in trainee.batches.at(step)] for step in steps]
    return padding([part for batch in batches for part in pack(trainee.seats(0, batch), packing)])


def _places(trainee: Trainee) -> int:
    examples = trainee.prepared.train.examples
    texts = trainee.task.batch_size * len(examples[0].sequences)
    return texts * (trainee.adapter.weights.num_virtual + max(example.longest for example in examples))
