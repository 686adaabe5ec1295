"""One optimizer step of every adapter in training, in shared passes.

Each adapter's loss is the sum over its own tokens (or rows), each times its row's weight, divided by the sum of these
weights in the whole window, so neither micro-batches nor other adapters weigh in; the losses are summed and each
adapter steps with its own optimizer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.adapters.dropout import row_keys
from umbel.adapters.wear import dropout_of, fuse_all
from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import KEEP_ALL, Checkpointing
from umbel.core.errors import UmbelError
from umbel.training.contrast import Contrast, scattered
from umbel.training.data.encode import Example
from umbel.training.distributed.group import ALONE, Group
from umbel.training.distributed.reduce import add_gradients
from umbel.training.distributed.share import Pass, share
from umbel.training.distributed.strategy import travel
from umbel.training.forward import run_pass
from umbel.training.passes import Packing, Seat
from umbel.training.trainee import Trainee, Validation, trained_tensors
from umbel.training.trunk.trunk import Cut, Trunk


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one step of one adapter did."""

    loss: float
    """Mean over its supervised tokens or rows."""
    norm: float
    """Of its gradient, before clipping."""
    lr: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What every pass needs beside its rows; none of it changes a result."""

    backbone: Backbone
    packing: Packing
    checkpointing: Checkpointing = KEEP_ALL
    """Which activations the backward pass computes again instead of finding them kept."""
    group: Group = ALONE
    """The processes that share each step's rows."""
    trunk: Trunk | None = None
    """Keeps what the frozen layers made of a row; needed where a trainee has a cut."""


def take_window(machine: Machine, trainees: Sequence[Trainee]) -> dict[int, Stepped]:
    """Steps every trainee once; those whose loss or gradient is not finite fail and leave, and the others go on.

    A window with a NaN is thrown away with all its gradients, so that nothing of it reaches a neighbour.
    """
    healthy = list(range(len(trainees)))
    while healthy:
        means, bad = _accumulate(machine, [trainees[i] for i in healthy])
        if not bad:
            return _step_all(trainees, healthy, means)
        for place in bad:
            trainees[healthy[place]].fail(_not_finite(trainees[healthy[place]], "loss"))
        healthy = [i for place, i in enumerate(healthy) if place not in bad]
        for i in healthy:
            trainees[i].optimizer.zero_grad()
    return {}


def rehearse(machine: Machine, trainees: Sequence[Trainee], rows: Sequence[Sequence[Example]]) -> None:
    """All of a window but its steps, on some rows of each, for the time it takes: gradients are thrown away."""
    _accumulate(machine, trainees, rows)
    for trainee in trainees:
        trainee.optimizer.zero_grad()


def _accumulate(
    machine: Machine, trainees: Sequence[Trainee], rows: Sequence[Sequence[Example]] | None = None
) -> tuple[list[float], list[int]]:
    """(mean loss of each, trainees whose loss is not finite); gradients are in the tensors afterwards.

    ``rows`` of each, where they are not those of the step that comes.
    """
    rows = rows or [trainee.next_rows() for trainee in trainees]
    _fill(machine, [(trainee.cut, found, trainee.coming_rows) for trainee, found in zip(trainees, rows, strict=True)])
    masses = [sum(example.mass for example in found) for found in rows]
    seats = [seat for i, trainee in enumerate(trainees) for seat in trainee.seats(i, rows[i])]
    most = {i: trainee.task.micro_batch for i, trainee in enumerate(trainees)}
    means = torch.zeros(len(trainees), dtype=torch.float64)
    parts = share(seats, machine.packing, machine.group, most)
    _collect_vectors(machine, trainees, seats, parts, masses)
    for number, part in enumerate(parts, start=1):
        travel(machine.backbone.decoder, last=number == len(parts))
        losses = _losses(machine, trainees, part.seats, masses)
        weight = 0.0 if part.ghost else 1.0
        _scaled(trainees, torch.stack(list(losses.values())).sum() * weight).backward()  # type: ignore[no-untyped-call]
        for i, loss in losses.items():
            means[i] += weight * float(loss.detach())
    found = machine.group.add(means.to(machine.backbone.device)).tolist()
    add_gradients([each for trainee in trainees for each in trained_tensors(trainee.adapter).values()], machine.group)
    return found, [i for i, mean in enumerate(found) if not math.isfinite(mean)]


def _scaled(trainees: Sequence[Trainee], loss: Tensor) -> Tensor:
    """Larger under fp16, where a task trains alone; its step divides the gradient again."""
    scaler = trainees[0].scaler
    return loss if scaler is None else scaler.scale(loss)


def _fill(
    machine: Machine, wanted: Sequence[tuple[Cut | None, Sequence[Example], Callable[[], Iterable[Example]]]]
) -> None:
    """Computes the frozen states that are not kept yet, for every trainee that has a cut."""
    for cut, examples, ahead in wanted:
        if cut is not None and machine.trunk is not None:
            machine.trunk.fill(cut, examples, ahead)


@torch.no_grad()
def _collect_vectors(
    machine: Machine, trainees: Sequence[Trainee], seats: Sequence[Seat], parts: Sequence[Pass], masses: Sequence[float]
) -> None:
    """Embedders whose step is scattered over several passes or processes see all its texts before the first gradient.

    With sharded weights every process runs as many passes as the others, if need be with a row that nobody looks at.
    """
    contrasts = _contrasts(seats)
    several = machine.group.size > 1
    apart = {id(c) for c in contrasts.values()} if several else scattered([part.seats for part in parts])
    for part in parts if apart else ():
        there = [seat for seat in part.seats if id(seat.contrast) in apart]
        if there or several:
            _losses(machine, trainees, there or part.seats[:1], masses)
    for contrast in contrasts.values():
        _exchange(machine, contrast, parts)


def _contrasts(seats: Sequence[Seat]) -> dict[int, Contrast]:
    """Of the embedders, by trainee."""
    return {seat.trainee: seat.contrast for seat in seats if seat.contrast is not None}


def _exchange(machine: Machine, contrast: Contrast, parts: Sequence[Pass]) -> None:
    """Every process gets every text's vector."""
    if machine.group.size > 1:
        mine = [seat for part in parts if not part.ghost for seat in part.seats if seat.contrast is contrast]
        own = {seat.example.index for seat in mine}
        wide = torch.promote_types(machine.backbone.dtype, torch.float32)
        contrast.exchange(own, machine.group.add, torch.empty(0, dtype=wide, device=machine.backbone.device))


def _losses(
    machine: Machine, trainees: Sequence[Trainee], part: Sequence[Seat], masses: Sequence[float]
) -> dict[int, Tensor]:
    adapters = [trainee.adapter for trainee in trainees]
    worn = fuse_all(adapters, dtype=machine.backbone.dtype)
    keys = _dropout_keys(trainees, part)
    keys = None if keys is None else keys.to(machine.backbone.device)
    scores = run_pass(
        machine.backbone, adapters, worn, part, keys=keys, checkpointing=machine.checkpointing, trunk=machine.trunk
    )
    return {i: score.loss / masses[i] for i, score in scores.items()}


def _dropout_keys(trainees: Sequence[Trainee], part: Sequence[Seat]) -> Tensor | None:
    """[B] keys of each row's own adapter, step and index; None where nobody drops anything."""
    if not any(dropout_of(t.adapter) > 0 or t.adapter.head.config.dropout > 0 for t in trainees):
        return None
    return row_keys(
        torch.tensor([trainees[seat.trainee].task.seed for seat in part]),
        torch.tensor([trainees[seat.trainee].step for seat in part]),
        torch.tensor([seat.example.index for seat in part]),
    )


def _step_all(trainees: Sequence[Trainee], healthy: Sequence[int], means: Sequence[float]) -> dict[int, Stepped]:
    done: dict[int, Stepped] = {}
    for place, i in enumerate(healthy):
        trainee = trainees[i]
        lr, tokens = trainee.schedule.at(trainee.step), sum(example.tokens for example in trainee.next_rows())
        norm = trainee.take_step()
        if not math.isfinite(norm):
            if trainee.may_try_again:
                continue
            trainee.fail(_not_finite(trainee, "gradient"))
            continue
        trainee.tokens += tokens
        trainee.losses.append(means[place])
        done[i] = Stepped(means[place], norm, lr, tokens)
    return done


def _not_finite(trainee: Trainee, what: str) -> UmbelError:
    return UmbelError(
        f"{trainee.task.name}: the {what} of step {trainee.step + 1} is not a finite number.",
        code="not_finite",
        hint=f"train it again with a smaller --lr than {trainee.schedule.peak:g}, or a longer --warmup",
    )


@torch.no_grad()
def look(machine: Machine, trainees: Sequence[Trainee]) -> list[tuple[Trainee, Validation]]:
    """What the validation rows say of those that have any, in shared passes without gradients."""
    there = [trainee for trainee in trainees if trainee.prepared.validation.examples]
    if not there:
        return []
    adapters = [trainee.adapter for trainee in there]
    worn = fuse_all(adapters, dtype=machine.backbone.dtype)
    seats = [seat for i, t in enumerate(there) for seat in t.seats(i, t.prepared.validation.examples)]
    _fill(machine, [(trainee.cut, trainee.prepared.validation.examples, tuple) for trainee in there])
    sums = torch.zeros(4, len(there), dtype=torch.float64)
    parts = share(seats, machine.packing, machine.group)
    for part in parts:
        for i, score in run_pass(machine.backbone, adapters, worn, part.seats, trunk=machine.trunk).items():
            if not part.ghost:
                answered = 0 if score.right is None else int(score.right)
                found = [float(score.loss), score.mass, answered, score.count]
                sums[:, i] += torch.tensor(found, dtype=torch.float64)
    for i, contrast in _contrasts(seats).items():
        _exchange(machine, contrast, parts)
        if machine.group.leads:
            sums[:, i] += torch.tensor(contrast.total(), dtype=torch.float64)
    loss, mass, right, count = machine.group.add(sums.to(machine.backbone.device)).tolist()
    told = [Validation(t.step, loss[i] / mass[i], right[i] / count[i]) for i, t in enumerate(there)]
    return list(zip(there, told, strict=True))
