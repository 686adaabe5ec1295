"""What a training will do, told before the first step: rows, tokens, steps, memory, time, learning rate and why."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import torch

from umbel.adapters import catalog
from umbel.backbone.backbone import Backbone
from umbel.core.contract import OutputHead
from umbel.core.forms import Form
from umbel.core.shape import LINEARS
from umbel.training.data.source import balance
from umbel.training.estimate.peak import peak_bytes
from umbel.training.passes import Packing, pack, padding
from umbel.training.schedule import TUNING_RATE
from umbel.training.trainee import Trainee
from umbel.training.trunk.choice import kept_bytes
from umbel.training.tuning.memory import Held, lowest, saved_by_freezing
from umbel.training.window import Machine

if TYPE_CHECKING:
    from umbel.training.sweep.halving import Halving

_EFFICIENCY = 0.5
"""Of the machine's matrix products, what a whole step reaches; measured on two cores with a 135M backbone."""
_CALL = 1.2e-3
"""Seconds that one layer costs in forward and backward, however few tokens there are; measured likewise."""
_STEP = 0.02
"""Seconds of a step that no backbone causes: optimizers, batches, the run log."""


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
    seconds: float
    """Estimated from this machine's speed at matrix products, validation included, judging not."""
    sweep: "Halving | None" = None
    """Who leaves when, where the tasks are the candidates of one."""


def plan_fit(trainees: Sequence[Trainee], machine: Machine) -> FitPlan:
    backbone, packing = machine.backbone, machine.packing
    tasks = tuple(plan_task(trainee, backbone, packing) for trainee in trainees)
    return FitPlan(
        tasks=tasks,
        backbone=backbone.name,
        dtype=str(backbone.dtype).removeprefix("torch."),
        device=str(backbone.device),
        quantised=backbone.quantised,
        threads=torch.get_num_threads(),
        memory=peak_bytes(trainees, machine),
        seconds=_seconds(trainees, tasks, backbone, packing),
    )


def of_sweep(plan: FitPlan, halving: "Halving") -> FitPlan:
    """The plan of candidates that do not all train to their end."""
    return replace(plan, seconds=plan.seconds * halving.runs / halving.field, sweep=halving)


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


def _supervised_share(trainee: Trainee) -> float:
    """Places whose logits are computed, of all places."""
    examples = trainee.prepared.train.examples
    if examples[0].spoken is None:
        return 0.0
    return sum(example.count for example in examples) / sum(len(example.ids) for example in examples)


def _seconds(trainees: Sequence[Trainee], tasks: Sequence[TaskPlan], backbone: Backbone, packing: Packing) -> float:
    """A step costs 2 operations per weight and token forwards, and as many backwards for activations and for weights,
    where those want a gradient. What is kept of the layers below an adapter costs once."""
    shape = backbone.shape
    body = sum(d_in * d_out for d_in, d_out in map(shape.linear, LINEARS)) * shape.layers
    work = calls = steps = 0.0
    for trainee, plan in zip(trainees, tasks, strict=True):
        run = 1.0 if trainee.cut is None else 1 - trainee.cut.layer / shape.layers
        head = _supervised_share(trainee) * shape.vocab * shape.hidden
        held = sum(e.tokens for e in trainee.prepared.validation.examples)
        trained = plan.total_tokens / (1 - plan.padding)
        work += 2 * (body * run + head) * (trained + plan.steps / trainee.eval_every * held)
        work += 2 * (body * _backwards(trainee, backbone) + head) * trained
        work += 2 * body * (1 - run) * (min(plan.tokens, trained) + held)
        calls = max(calls, plan.steps * run) + plan.total_tokens / packing.tokens * run
        steps = max(steps, plan.steps)
    seconds = work / (_EFFICIENCY * operations_per_second(backbone))
    return seconds + calls * shape.layers * _CALL + steps * _STEP


def _above(trainee: Trainee) -> float:
    """Share of the layers that the adapter acts in or above."""
    weights = trainee.adapter.weights
    return 1 - weights.lowest_layer / weights.shape.layers


def _backwards(trainee: Trainee, backbone: Backbone) -> float:
    """Work of the backward pass over that of the forward one."""
    if not trainee.tuned:
        return _above(trainee)
    layers = backbone.shape.layers
    own = sum(tensor.numel() for name, tensor in trainee.tuned.items() if name.startswith("layers."))
    inside = sum(p.numel() for name, p in backbone.decoder.named_parameters() if name.startswith("layers."))
    return (layers - lowest(trainee.tuned)) / layers + own / inside


def operations_per_second(backbone: Backbone) -> float:
    """Of matrix products in the backbone's dtype, measured in a few milliseconds."""
    shape = backbone.shape
    x = torch.ones(512, shape.hidden, dtype=backbone.dtype, device=backbone.device)
    weight = torch.ones(2 * shape.intermediate, shape.hidden, dtype=backbone.dtype, device=backbone.device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float(torch.nn.functional.linear(x, weight)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * x.numel() * weight.shape[0] / median(times)
