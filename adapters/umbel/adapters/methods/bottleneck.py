"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751) in Pfeiffer's placement (2020, arXiv 2005.00247).

    h = h + W_up f(W_down h + b_down) + b_up          h is the feed-forward's output, before the residual add

PEFT has no such method, so the format is ours. W_up starts at zero: a fresh adapter changes nothing.

Shape letters here:  S slots   M rows x tokens of a slot   H hidden   W width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.adapters.method import Batch, Fused, Method, Weights
from umbel.adapters.products import product
from umbel.adapters.sites import Frozen
from umbel.core.errors import ConfigError
from umbel.core.shape import BackboneShape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckConfig:
    """Width and activation of the small network after each feed-forward."""

    width: int = 32
    """Inner features."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Between its two linear maps."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width must be at least 1, got {self.width}.", param="width")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"there is no activation {self.activation!r}.", hint=f"choose from {list(ACTIVATIONS)}")


class BottleneckWeights(Weights):
    """``down`` [W, H] and ``up`` [H, W] with biases, for each layer."""

    config: BottleneckConfig

    @classmethod
    def expected(cls, config: BottleneckConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        for layer in range(shape.layers):
            sizes[f"{_path(layer)}.down.weight"] = (config.width, shape.hidden)
            sizes[f"{_path(layer)}.down.bias"] = (config.width,)
            sizes[f"{_path(layer)}.up.weight"] = (shape.hidden, config.width)
            sizes[f"{_path(layer)}.up.bias"] = (shape.hidden,)
        return sizes

    @classmethod
    def fresh(cls, config: BottleneckConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        tensors = {}
        for name, size in cls.expected(config, shape).items():
            scale = shape.hidden**-0.5 if name.endswith("down.weight") else 0.0
            tensors[name] = torch.randn(size, generator=generator) * scale
        return cls(config, shape, tensors)

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """down and up [W, H]. The activation is part of the key: adapters with different ones do not share a stack."""
        fused: Fused = {}
        for layer in range(self.shape.layers):
            path, kind = _path(layer), self.config.activation
            fused[layer, f"down.{kind}"] = self.tensors[f"{path}.down.weight"]
            fused[layer, "down.bias"] = self.tensors[f"{path}.down.bias"].view(1, -1)
            fused[layer, "up"] = self.tensors[f"{path}.up.weight"].t().contiguous()
            fused[layer, "up.bias"] = self.tensors[f"{path}.up.bias"].view(1, -1)
        return fused


def _path(layer: int) -> str:
    return f"model.layers.{layer}.bottleneck"


class BottleneckBatch(Batch):
    """Two products per slot after the feed-forward."""

    def after(self, layer: int, part: str, x: Tensor, h: Tensor) -> Tensor:
        if part != "mlp":
            return h
        kind = next(kind for kind in ACTIVATIONS if (layer, f"down.{kind}") in self.stack)
        h_SMH = self.rows.take(h)
        if torch.is_grad_enabled():
            h = h.clone()  # ``add`` writes into it, and the product keeps what it read for the backward pass
        inner = product(h_SMH, self._of(layer, f"down.{kind}").transpose(1, 2), self._of(layer, "down.bias"))
        return self.rows.add(h, product(ACTIVATIONS[kind](inner), self._of(layer, "up"), self._of(layer, "up.bias")))

    def _of(self, layer: int, what: str) -> Tensor:
        return self.rows.of(self.stack[layer, what])


def noop(weights: Weights) -> bool:
    return all(not tensor.any() for name, tensor in weights.tensors.items() if ".up." in name)


METHOD = Method(
    name="bottleneck",
    config=BottleneckConfig,
    weights=BottleneckWeights,
    batch=BottleneckBatch,
    peft_type=None,
    zero_start=True,
    learning_rate=1e-3,
    noop=noop,
    summary="a small network after each feed-forward",
)
