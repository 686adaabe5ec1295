"""One adapter in training: its master tensors, its own optimizer, schedule and batches, and the best it has been.

Where a task trains the backbone's own tensors too (``tuning``), they are among what its optimizer moves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from umbel.adapters import catalog
from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.head import HeadConfig
from umbel.adapters.method import Run
from umbel.adapters.sites import Sites
from umbel.backbone.attention import WholeAttention
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Layer, Step
from umbel.backbone.shards import own_rows
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError, UmbelError
from umbel.training.batches import Batches
from umbel.training.contrast import Contrast
from umbel.training.data.encode import Example
from umbel.training.distributed.clip import clip
from umbel.training.passes import Seat
from umbel.training.precision import Precision
from umbel.training.prepared import Prepared
from umbel.training.schedule import TUNING_RATE, Schedule, by_width, default_learning_rate
from umbel.training.task import Task
from umbel.training.trunk.trunk import Cut

_AHEAD = 8
"""Steps whose rows are prepared together: a stop waits for them."""


class Status(StrEnum):
    TRAINING = "training"
    DONE = "done"
    STOPPED = "stopped early"
    DOMINATED = "dominated"
    """Others of its sweep were better at a rung."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Validation:
    """What the validation rows said after so many steps."""

    step: int
    loss: float
    """Mean over supervised tokens or rows, in nats (or squared error)."""
    accuracy: float
    """Share of them answered right."""

    @property
    def order(self) -> float:
        """The loss; one that is not a number is the worst there is."""
        return math.inf if math.isnan(self.loss) else self.loss


@dataclass(eq=False)
class Trainee:
    """Nothing here is shared with another adapter: together or alone, its numbers are the same."""

    prepared: Prepared
    adapter: Adapter
    optimizer: torch.optim.AdamW
    batches: Batches
    schedule: Schedule
    eval_every: int
    step: int = 0
    """Optimizer steps taken."""
    status: Status = Status.TRAINING
    error: UmbelError | None = None
    run: str = ""
    """Id of its run in the run log."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Of a sharded tensor this process's part."""
    history: list[Validation] = field(default_factory=list)
    rungs: list[Validation] = field(default_factory=list)
    """What a sweep compared it by; no part of its own course."""
    losses: list[float] = field(default_factory=list)
    """Training loss of every step."""
    tokens: int = 0
    """Seen so far, padding not counted."""
    cut: Cut | None = None
    """Where the layers that no weight of this adapter bears on end, if their results are kept."""
    tuned: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters of the backbone's decoder that this task trains, by their names there; none on a frozen one."""
    precision: Precision | None = None
    """Of ``tuned``; None on a frozen backbone."""
    scaler: torch.amp.GradScaler | None = None
    """Of the loss, where gradients would vanish in fp16."""

    @property
    def task(self) -> Task:
        return self.prepared.task

    @property
    def active(self) -> bool:
        return self.status is Status.TRAINING

    @property
    def best_validation(self) -> Validation | None:
        return min(self.history, key=lambda each: each.order, default=None)

    def seats(self, index: int, examples: Sequence[Example]) -> list[Seat]:
        """One for each sequence; the pairs of an embedder see each other."""
        virtual, contrast = self.adapter.weights.num_virtual, None
        if self.task.output_head is OutputHead.EMBED:
            width = self.adapter.head.config.outputs or self.adapter.head.hidden
            task = self.task
            contrast = Contrast(examples, temperature=task.temperature, group=task.batch_size, width=width)
        return [
            Seat(index, text, virtual, cut=self.cut, contrast=contrast)
            for example in examples
            for text in example.sequences
        ]

    def next_rows(self) -> list[Example]:
        """Rows of the step that comes."""
        return [self.prepared.train.examples[place] for place in self.batches.at(self.step)]

    def coming_rows(self) -> list[Example]:
        """Rows of the next few steps, for who prepares many at once."""
        steps = range(self.step, min(self.step + _AHEAD, self.schedule.steps, self._epoch_end))
        return [self.prepared.train.examples[place] for step in steps for place in self.batches.at(step)]

    @property
    def _epoch_end(self) -> int:
        """``Batches`` holds one epoch's order at a time."""
        return (self.step // self.batches.per_epoch + 1) * self.batches.per_epoch

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that steps move."""
        return {**trained_tensors(self.adapter), **self._own_names()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint has to hold: the adapter's tensors, and the backbone's that are trained."""
        return {**self.adapter.tensors, **self._own_names()}

    def _own_names(self) -> dict[str, Tensor]:
        return {f"backbone/{name}": tensor for name, tensor in self.tuned.items()}

    def take_step(self) -> float:
        """Clips and applies the gradient; returns its norm before clipping. Not finite: nothing is applied."""
        parameters = [tensor for tensor in self.trained.values() if tensor.grad is not None]
        limit = self.task.clip or float("inf")
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = clip(parameters, limit)
        if norm == norm and norm != float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.at(self.step)
            self.optimizer.step()
            self.step += 1
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    @property
    def may_try_again(self) -> bool:
        """Whether a step that was not finite is one that a smaller scale of the loss may save."""
        return self.scaler is not None and self.scaler.get_scale() >= 1.0

    def fail(self, error: UmbelError) -> None:
        self.status, self.error = Status.FAILED, error
        self.optimizer.zero_grad()

    def due(self) -> bool:
        """Whether to look at the validation rows now."""
        return self.step % self.eval_every == 0 or self.step == self.schedule.steps

    @property
    def looks_left(self) -> int:
        """Times that it is going to be due, if nothing ends it before."""
        steps = self.schedule.steps
        between = steps // self.eval_every - self.step // self.eval_every
        return between + (steps % self.eval_every > 0 and self.step < steps)

    def validated(self, found: Validation) -> None:
        """Keeps the best tensors and ends the training where it is over."""
        best = self.best_validation
        self.history.append(found)
        if best is None or found.order < best.order:
            self.best = {name: self._copy(name, tensor.detach()) for name, tensor in self.tensors.items()}
        elif self._patience_is_over():
            self.status = Status.STOPPED

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """The backbone's are kept as they will be served: half the bytes under bf16-mixed."""
        if self.precision is None or name in self.adapter.tensors:
            return tensor.clone()
        return own_rows(tensor)[0].to("cpu", self.precision.compute, copy=True)

    def _patience_is_over(self) -> bool:
        if self.task.patience is None:
            return False
        losses = [each.order for each in self.history]
        return len(losses) - 1 - losses.index(min(losses)) >= self.task.patience

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the best tensors back, and frees what only training needs."""
        for name, tensor in self.tensors.items():
            own = own_rows(tensor)[0]
            own.copy_(self.best.get(name, own))
            tensor.requires_grad_(False)
        self.adapter.weights.bake()


def trainee_of(
    prepared: Prepared,
    backbone: Backbone,
    parent: Adapter | None = None,
    *,
    tuned: Mapping[str, Tensor] | None = None,
    precision: Precision | None = None,
) -> Trainee:
    """At step 0, fresh or with a parent's weights. Masters are fp32 (float64 on a float64 backbone), on its device.

    ``tuned`` are the backbone's own parameters that are trained with the adapter, under ``precision``.
    Raises ConfigError (``parent_mismatch``) for a parent of another shape, labels or template.
    """
    task = prepared.task
    adapter = fresh_adapter(
        task.method,
        dict(task.options),
        prepared.contract,
        backbone.shape,
        backbone=backbone.fingerprint,
        seed=task.seed,
        head=HeadConfig(
            depth=task.head_depth,
            width=task.head_width,
            activation=task.head_activation,
            dropout=task.head_dropout,
            pooling=task.pooling,
            outputs=task.embedding_size or 0,
        ),
    )
    _own_masters(adapter, backbone, may_be_empty=bool(tuned))
    if parent is not None:
        _start_from(adapter, parent)
    virtual = adapter.weights.num_virtual
    lengths = [virtual + example.longest for example in prepared.train.examples]
    batches = Batches(lengths, batch_size=task.batch_size, seed=task.seed)
    steps = batches.steps(epochs=task.epochs, steps=task.steps)
    peak = task.lr or _rate(task, backbone, tunes=bool(tuned))
    trained = [*trained_tensors(adapter).values(), *(tuned or {}).values()]
    return Trainee(
        prepared=prepared,
        adapter=adapter,
        optimizer=_optimizer(trained, peak, task.weight_decay),
        batches=batches,
        schedule=Schedule.of(task, peak, steps),
        eval_every=task.eval_every or _eval_every(prepared, steps),
        tuned=tuned or {},
        precision=precision,
        scaler=torch.amp.GradScaler(backbone.device.type) if precision is not None and precision.scaled else None,
    )


def _eval_every(prepared: Prepared, steps: int) -> int:
    """A row is looked at in about a third of the time that training on it takes: with no more of them than were
    trained on since the last look, a short training goes into training."""
    looked_at = len(prepared.validation.examples)
    return max(1, round(steps / 8), math.ceil(looked_at / prepared.task.batch_size))


def _rate(task: Task, backbone: Backbone, *, tunes: bool) -> float:
    width = backbone.shape.hidden
    return by_width(TUNING_RATE, width) if tunes else default_learning_rate(catalog.method(task.method), width)


def trained_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """By name: what the method trains (encoders in place of what they make), and the output head."""
    return {**{name: adapter.weights.tensors[name] for name in adapter.weights.trainable}, **adapter.head.tensors}


def _own_masters(adapter: Adapter, backbone: Backbone, *, may_be_empty: bool) -> None:
    dtype = torch.promote_types(backbone.dtype, torch.float32)
    for tensors in (adapter.weights.tensors, adapter.head.tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(device=backbone.device, dtype=dtype).clone()
    layers = [layer for layer in backbone.decoder.layers if isinstance(layer, Layer)]
    adapter.weights.initialise(layers, runner(backbone), backbone.decoder)
    trained = trained_tensors(adapter)
    if not trained and not may_be_empty:
        raise ConfigError(
            f"method {adapter.method.name!r} under a {adapter.contract.output_head} head has nothing to train.",
            code="nothing_to_train",
            hint="choose another --method, or train the backbone's own layers: --train layers=last:4",
        )
    for tensor in trained.values():
        tensor.requires_grad_()


@torch.no_grad()
def _start_from(adapter: Adapter, parent: Adapter) -> None:
    """Copies the parent's tensors; its optimizer is gone, so the schedule starts anew."""
    for what in ("output_head", "labels", "template", "input_form", "multi_label"):
        own, theirs = getattr(adapter.contract, what), getattr(parent.contract, what)
        if own != theirs:
            raise _other_parent(f"{what} {own!r}, {parent.name} has {theirs!r}")
    sizes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    if adapter.method.name != parent.method.name or sizes != {n: tuple(t.shape) for n, t in parent.tensors.items()}:
        raise _other_parent(f"a {adapter.method.name} of other sizes than {parent.name}, a {parent.method.name}")
    for name, tensor in adapter.tensors.items():
        tensor.copy_(parent.tensors[name])


def _other_parent(what: str) -> ConfigError:
    return ConfigError(
        f"the task has {what}.",
        code="parent_mismatch",
        param="from",
        hint="leave these options to the parent, or train without --from",
    )


def runner(backbone: Backbone) -> Run:
    """What methods that start from a text run the backbone with."""

    @torch.no_grad()
    def run(sites: Sites, tokens: int, text: str) -> None:
        ids = backbone.tokenizer.encode(text)
        if not ids:
            raise ConfigError(f"init_text {text!r} has no tokens.", param="init_text")
        row = torch.tensor([(ids * tokens)[:tokens]], device=backbone.device)
        positions = torch.arange(tokens, device=backbone.device)[None]
        backbone.decoder(row, Step(positions, WholeAttention(sites), sites))

    return run


def _optimizer(tensors: Sequence[Tensor], lr: float, weight_decay: float) -> torch.optim.AdamW:
    groups = [
        {
            "params": [t for t in tensors if (t.dim() >= 2) is matrices and isinstance(t, DTensor) is sharded],
            "weight_decay": weight_decay if matrices else 0.0,
        }
        for matrices in (True, False)
        for sharded in (True, False)  # one fused update takes tensors of one kind
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)
