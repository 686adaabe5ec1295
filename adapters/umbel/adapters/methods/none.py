"""No method: the frozen backbone as it is, under an output head of its own (the frozen-trunk classifier)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from umbel.adapters.method import Batch, Fused, Method, Weights
from umbel.adapters.sites import Frozen
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneConfig:
    """Nothing to choose: only the output head is trained."""


class NoneWeights(Weights):
    """No tensors below the output head."""

    @classmethod
    def expected(cls, config: NoneConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        return {}

    @classmethod
    def fresh(cls, config: NoneConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        return cls(config, shape, {})

    @property
    def lowest_layer(self) -> int:
        return self.shape.layers

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        return {}


class NoneBatch(Batch):
    """Acts nowhere."""


def noop(weights: Weights) -> bool:
    return True


METHOD = Method(
    name="none",
    config=NoneConfig,
    weights=NoneWeights,
    batch=NoneBatch,
    peft_type=None,
    zero_start=True,
    learning_rate=1e-3,
    noop=noop,
    summary="output head only, on the frozen backbone",
)
