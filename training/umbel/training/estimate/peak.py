"""The most memory that a training is going to hold: what the process holds before its first step, the optimizers'
states that come, and the largest of its passes, found by running that one on tensors without bytes."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from umbel.adapters import wide_products
from umbel.adapters.head import HeadConfig
from umbel.backbone.backbone import Backbone
from umbel.backbone.footprint import PRODUCTS
from umbel.backbone.shards import own_rows
from umbel.core.anew import NO_CACHE
from umbel.core.held import most_held
from umbel.training.estimate.estimate import MOMENTS
from umbel.training.estimate.step import StepBytes, fake_step
from umbel.training.estimate.work import Work, unpacked
from umbel.training.passes import Seat, lines_of, pack
from umbel.training.trainee import Trainee
from umbel.training.trunk.choice import kept_bytes
from umbel.training.trunk.rowstore import IN_MEMORY
from umbel.training.tuning.memory import per_place
from umbel.training.window import Machine

_PROGRAM = 450_000_000
"""Bytes of Python, torch and the tokenizer where the system does not say what a process holds."""
_LIBRARIES = 25_000_000
"""Bytes of torch's libraries that the first step reads; measured."""
_KERNEL = 580_000
"""Bytes of what oneDNN makes for one size of a bf16 product; measured with ``ONEDNN_VERBOSE=profile_create``."""
_HOLES, _HOLES_COMPACT = 0.35, 0.08
"""Of all that the layers make of a pass, also where it is made again, what lies free between blocks in use and fits
nothing that comes. The first is while glibc's threads cache small blocks, so that edges of freed blocks are kept apart;
``umbel train`` runs without that cache. Measured."""
_LOOKED_AT = 6
"""Windows that are laid out in search of the largest pass: those with the most places."""


@dataclass(frozen=True, slots=True)
class _Pass:
    seats: list[Seat]
    more: bool
    """Whether its window has other passes, whose gradients may be there before it."""

    @property
    def length(self) -> int:
        return max(sum(seat.length for seat in line) for line in lines_of(self.seats))

    @property
    def places(self) -> int:
        return len(lines_of(self.seats)) * self.length

    @property
    def kept(self) -> bool:
        """Whether only what a head reads passes: a few numbers for each row."""
        cut = self.seats[0].cut
        return cut is not None and cut.whole

    def cost(self, backbone: Backbone) -> int:
        """Grows with what its activations take."""
        if self.kept:
            return len(self.seats)
        return self.places * (per_place(backbone) + 3 * backbone.shape.heads * self.length)


def peak_bytes(trainees: Sequence[Trainee], machine: Machine) -> int:
    """Of this process at most, asked before the first step; on a GPU, of its memory."""
    backbone, passes = machine.backbone, _passes(trainees, machine)
    largest = max(passes, key=lambda each: each.cost(backbone))
    sharded = any(isinstance(each, DTensor) for each in backbone.decoder.parameters())
    works = () if largest.kept else _works(largest, trainees, machine)
    steps = [fake_step(work, gradient_weight=_weight(work, machine)) for work in works]
    made = unpacked(backbone.config, backbone.dtype, backbone.quantised)
    step = made + sum(_of_step(each, largest.more) for each in steps)
    coming = sum(_states(trainee) + _kept(trainee, backbone) for trainee in trainees)
    holes = _holes(largest, backbone)
    passing = _gathered(backbone, trains=any(trainee.tuned for trainee in trainees)) if sharded else 0
    kernels = _kernels(passes, sum(each.products for each in steps), backbone)
    found = _held_now(backbone, trainees) + coming + max(step, _look(trainees, machine)) + holes + passing + kernels
    return max(found, _held_before(backbone))


def _of_step(step: StepBytes, more: bool) -> int:
    return max(step.peak, step.activations + step.trained) if more else step.peak


def _passes(trainees: Sequence[Trainee], machine: Machine) -> list[_Pass]:
    """Of the windows with the most places, laid out as they will be; a mate's passes are like this process's."""
    sizes = _places(trainees)
    passes = []
    for window in nlargest(_LOOKED_AT, range(len(sizes)), key=sizes.__getitem__):
        parts = _laid_out(window, trainees, machine)
        passes += [_Pass(part, len(parts) > 1) for part in parts]
    return passes


def _places(trainees: Sequence[Trainee]) -> list[int]:
    """Of every window: rows times the longest of them, of each adapter that still trains."""
    sizes = [0] * max(trainee.schedule.steps for trainee in trainees)
    for trainee in trainees:
        for step in range(trainee.schedule.steps):
            batch = trainee.batches.at(step)
            sizes[step] += len(batch) * int(trainee.batches.lengths[batch].max())
    return sizes


def _laid_out(window: int, trainees: Sequence[Trainee], machine: Machine) -> list[list[Seat]]:
    group, seats = machine.group, []
    for index, trainee in enumerate(trainees):
        if window < trainee.schedule.steps:
            examples = trainee.prepared.train.examples
            seats += trainee.seats(index, [examples[place] for place in trainee.batches.at(window)])
    most = {index: trainee.task.micro_batch for index, trainee in enumerate(trainees)}
    return pack(seats[group.rank :: group.size] or seats[:1], machine.packing, most)


def _works(largest: _Pass, trainees: Sequence[Trainee], machine: Machine) -> Iterator[Work]:
    """The pass by kinds of adapters: a row costs what it costs in any company."""
    kinds: dict[tuple[object, ...], list[Seat]] = {}
    for line in lines_of(largest.seats):
        kinds.setdefault(_kind(trainees[line[0].trainee]), []).extend(line)
    alike = Counter(map(_kind, trainees))
    for kind, seats in kinds.items():
        yield _work(seats, largest.length, trainees[seats[0].trainee], alike[kind], machine)


def _kind(trainee: Trainee) -> tuple[object, ...]:
    task = trainee.task
    return task.method, repr(task.options), task.output_head


def _work(seats: Sequence[Seat], length: int, trainee: Trainee, adapters: int, machine: Machine) -> Work:
    task, dtype = trainee.task, machine.backbone.dtype
    rows = len(lines_of(seats))
    spoken = sum(int(seat.example.spoken.sum()) for seat in seats if seat.example.spoken is not None)
    return Work(
        config=machine.backbone.config,
        trained=frozenset(trainee.tuned),
        masters=torch.promote_types(dtype, torch.float32) if trainee.precision is None else trainee.precision.masters,
        compute=dtype if trainee.precision is None else trainee.precision.compute,
        method=task.method,
        options=task.options,
        output_head=task.output_head,
        adapters=adapters,
        rows=rows,
        length=max(2, length - trainee.adapter.weights.num_virtual),
        head=HeadConfig(depth=task.head_depth, width=task.head_width, pooling=task.pooling),
        answer=max(1, -(-spoken // rows)),
        checkpointing=str(machine.checkpointing),
    )


def _weight(work: Work, machine: Machine) -> float:
    shards = 1 if not work.trained else _shards(machine.backbone)
    return work.masters.itemsize / work.compute.itemsize / shards


def _shards(backbone: Backbone) -> int:
    first = next(backbone.decoder.parameters())
    return round(first.numel() / own_rows(first)[0].numel()) if isinstance(first, DTensor) else 1


def _states(trainee: Trainee) -> int:
    """Moments, and the best so far; under mixed precision on one device also what the masters are cast to, and in
    shards what a checkpoint is written from."""
    own, trained = _own_bytes(trainee.adapter.tensors.values()), _own_bytes(trainee.trained.values())
    found = MOMENTS * trained + (own if trainee.prepared.validation.examples else 0)
    if trainee.precision is None:
        return found
    cast = sum(own_rows(each)[0].numel() for each in trainee.tuned.values()) * trainee.precision.compute.itemsize
    kept = cast if trainee.prepared.validation.examples else 0
    single = not any(isinstance(each, DTensor) for each in trainee.tuned.values())
    return found + kept + written_bytes(trainee) + (cast if trainee.precision.mixed and single else 0)


def written_bytes(trainee: Trainee) -> int:
    """Of the copies of all that this process holds in shards, from which a checkpoint is written while it trains on."""
    held = _own_bytes(each for each in trainee.tensors.values() if isinstance(each, DTensor))
    return held * (1 + MOMENTS + bool(trainee.prepared.validation.examples))


def _own_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(own_rows(each)[0].nbytes for each in tensors)


def _kept(trainee: Trainee, backbone: Backbone) -> int:
    """Of the frozen layers' results, what is held in memory as well."""
    return 0 if trainee.cut is None else min(kept_bytes(trainee, trainee.cut, backbone), IN_MEMORY)


def _look(trainees: Sequence[Trainee], machine: Machine) -> int:
    """A pass over validation rows: nothing is kept for a gradient, but its logits are all there."""
    shape, size = machine.backbone.shape, machine.backbone.dtype.itemsize
    most = 0
    for trainee in trainees:
        examples = trainee.prepared.validation.examples
        places = min(machine.packing.tokens, sum(example.tokens for example in examples))
        spoken = sum(example.count for example in examples if example.spoken is not None)
        share = spoken / max(1, sum(example.tokens for example in examples))
        most = max(most, int(places * (share * shape.vocab * (size + 8) + 6 * shape.intermediate * size)))
    return most


def _gathered(backbone: Backbone, *, trains: bool) -> int:
    """Of a sharded backbone, whole for a moment: the root, a layer in use and the next; and a layer's gradient."""
    size = backbone.dtype.itemsize
    layer = sum(each.numel() for each in backbone.decoder.layers[0].parameters()) * size
    root = sum(each.numel() for name, each in backbone.decoder.named_parameters() if "layers." not in name) * size
    return root + 2 * layer + (2 * max(layer, root) if trains else 0)


def _holes(largest: _Pass, backbone: Backbone) -> int:
    if backbone.device.type != "cpu" or sys.platform != "linux" or largest.kept:
        return 0
    share = _HOLES_COMPACT if NO_CACHE in os.environ.get("GLIBC_TUNABLES", "") else _HOLES
    return int(share * largest.places * per_place(backbone) * backbone.shape.layers * backbone.dtype.itemsize)


def _kernels(passes: Sequence[_Pass], products: int, backbone: Backbone) -> int:
    """What oneDNN keeps, for as many sizes as its cache has room for: ``products`` of each size of a pass."""
    if backbone.device.type != "cpu" or backbone.dtype != torch.bfloat16:
        return 0
    if wide_products.wanted(backbone.dtype, backbone.device):
        return 0  # none of bf16
    return min(PRODUCTS, len({each.places for each in passes}) * products) * _KERNEL


def _held_now(backbone: Backbone, trainees: Sequence[Trainee]) -> int:
    if backbone.device.type == "cuda":
        return torch.cuda.memory_allocated(backbone.device)
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        adapters = [tensor for trainee in trainees for tensor in trainee.tensors.values()]
        resident = _PROGRAM + _own_bytes([*backbone.decoder.parameters(), *adapters])
    return resident + _LIBRARIES


def _held_before(backbone: Backbone) -> int:
    """At most so far, while the backbone was loaded: the peak of a training that needs less."""
    if backbone.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backbone.device)
    return most_held()
