"""Bytes of each process, for one strategy: what it holds all the time, and what one step adds at most."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from umbel.backbone.units import Unit, meta_decoder, plan_units
from umbel.training.distributed.strategy import Strategy, quantised_shards
from umbel.training.estimate.step import fake_step
from umbel.training.estimate.work import Work, unpacked

MOMENTS = 2
"""AdamW's states per trained parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A unit of the wrap policy, and what all its processes hold of it for a moment."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Tensors of the process that holds most; Python and torch take about 0.6 GB beside them."""

    parameters: int
    """Of the backbone."""
    trained: int
    """Parameters that are trained, adapter and output head included."""
    backbone_trained: int
    weights: int
    gradients: int
    optimizer: int
    best: int
    """The copy of the best weights so far."""
    best_aside: bool
    """Whether that lies in CPU memory while all else is on a GPU; ``peak`` leaves it out then."""
    activations: int
    """When a forward pass is over."""
    gathered: int
    """Whole units beside the shards, at most; and the casts of mixed precision on one device."""
    peak: int
    """The most of all that at one time, which is less than the sum: activations go as gradients come."""
    operations: int
    """Multiplications and additions of one pass, forward and backward, in its matrix products."""
    units: tuple[Gathered, ...]
    """Of a sharded backbone."""

    @property
    def states(self) -> int:
        """Weights, gradients and optimizer: what the usual arithmetic counts."""
        return self.weights + self.gradients + self.optimizer


def estimate(work: Work, strategy: Strategy, *, on_cpu: bool = True) -> Estimate:
    """``work.rows`` are those of one process; sharding leaves activations alone."""
    decoder = meta_decoder(work.config)
    sizes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    shards = strategy.shards
    frozen = sum(_share(size, shards) for name, size in sizes.items() if name not in work.trained)
    trained = sum(_share(size, shards) for name, size in sizes.items() if name in work.trained)
    own = sum(_numel(size) for name, size in sizes.items() if name in work.trained)
    wide, narrow = work.masters.itemsize, work.compute.itemsize
    step = fake_step(work, gradient_weight=wide / narrow / shards)
    _check_shards(work, strategy)
    units = _units(work, plan_units(decoder, strategy.wrap)) if strategy.sharded else ()
    passing = _passing(work, strategy, units, sizes)
    gradients = trained * wide + step.trained
    weights = frozen * narrow - work.saved_by_form + trained * wide + step.adapter
    made = unpacked(work.config, work.compute, work.quantised)
    held = weights + MOMENTS * gradients
    best = trained * narrow + step.adapter
    return Estimate(
        parameters=sum(map(_numel, sizes.values())),
        trained=own + step.trained // 4,
        backbone_trained=own,
        weights=weights,
        gradients=gradients,
        optimizer=MOMENTS * gradients,
        best=best,
        best_aside=not on_cpu,
        activations=step.activations,
        gathered=passing,
        peak=held + (best if on_cpu else 0) + passing + step.peak + made,
        operations=step.operations,
        units=units,
    )


def _check_shards(work: Work, strategy: Strategy) -> None:
    if work.quantised is not None and strategy.sharded:
        raise quantised_shards(work.quantised)


def _numel(size: Iterable[int]) -> int:
    return int(torch.Size(size).numel())


def _share(size: tuple[int, ...], shards: int) -> int:
    """Parameters of the largest of the parts that rows are cut into."""
    rows = -(-size[0] // shards)
    return rows * _numel(size[1:])


def _units(work: Work, units: list[Unit]) -> tuple[Gathered, ...]:
    return tuple(
        Gathered(name=unit.name, parameters=unit.parameters, bytes=unit.parameters * work.compute.itemsize)
        for unit in units
    )


def _passing(work: Work, strategy: Strategy, units: tuple[Gathered, ...], sizes: dict[str, tuple[int, ...]]) -> int:
    """Beside what is held: the root, a unit in use and the next that is on its way, and a unit's whole gradient before
    it is cut (twice: as it is computed and as it is sent). Without sharding, only casts."""
    if not units:
        cast = work.masters != work.compute
        return sum(_numel(size) for name, size in sizes.items() if name in work.trained) * work.compute.itemsize * cast
    *inner, root = units
    largest = max((unit.bytes for unit in inner), default=0)
    whole = sum(unit.bytes for unit in inner) if not strategy.regather else min(2, len(inner)) * largest
    gradient = 2 * max(largest, root.bytes) if work.trained else 0
    return root.bytes + whole + gradient
