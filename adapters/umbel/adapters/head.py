"""What an output head is: the last step from hidden states to an answer.

``generate`` needs no tensors (the backbone's lm_head is its own); the others hold a few small matrices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError

NAME_LABELS = (
    "name one label for each row of score.weight, in order: --labels A,B,... of the command, or the field labels of an "
    "upload"
)
"""The fix where a head has other rows than labels."""

Pooling = Literal["last", "mean", "tokens", "none"]
"""Which hidden states a head reads: the last token's, their mean over the text's own tokens, each token's, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Fully connected layers on top of the backbone; depth 0 is one linear map, as in PEFT's classifiers."""

    outputs: int = 0
    """Features of the last layer: number of labels, 1 for a regression, width of an embedding."""
    depth: int = 0
    """Hidden layers before the last one."""
    width: int = 256
    """Features of each hidden layer."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    dropout: float = 0.0
    """In training only, before each layer."""
    pooling: Pooling | None = None
    """None is the output head's own way; a configured head always has one."""
    bias: bool = False
    """Whether the last layer has one: HF's sequence classifiers have none, its token classifiers do."""

    def __post_init__(self) -> None:
        if self.depth < 0 or self.width < 1 or self.outputs < 0:
            raise ConfigError(f"head sizes must not be negative: depth {self.depth}, width {self.width}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"head dropout must be at least 0 and below 1, got {self.dropout}.")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Head(ABC):
    """One adapter's output head: config and tensors."""

    kind: OutputHead

    def __init__(self, config: HeadConfig, hidden: int, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.hidden = hidden
        self.tensors = dict(tensors)

    @classmethod
    @abstractmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        """The config completed from the contract (number of labels, pooling); ConfigError where they disagree."""

    @classmethod
    def expected(cls, config: HeadConfig, hidden: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes: ``score.weight`` [outputs, D], and ``score_layers.{i}.weight/bias`` for hidden layers."""
        sizes: dict[str, tuple[int, ...]] = {}
        width = hidden
        for i in range(config.depth):
            sizes[f"score_layers.{i}.weight"] = (config.width, width)
            sizes[f"score_layers.{i}.bias"] = (config.width,)
            width = config.width
        sizes["score.weight"] = (config.outputs, width)
        if config.bias:
            sizes["score.bias"] = (config.outputs,)
        return sizes

    @classmethod
    def fresh(cls, config: HeadConfig, hidden: int, generator: torch.Generator) -> "Head":
        """Normal with deviation 0.02, as HF initialises ``score``; biases zero."""
        tensors = {
            name: torch.zeros(size) if len(size) == 1 else torch.randn(size, generator=generator) * 0.02
            for name, size in cls.expected(config, hidden).items()
        }
        return cls(config, hidden, tensors)

    @property
    def pooling(self) -> Pooling:
        assert self.config.pooling is not None, "configure() chooses one"
        return self.config.pooling

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def logits(self, pooled: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[M, hidden] -> [M, outputs], at least fp32. ``generator`` turns dropout on."""
        wide = torch.promote_types(self.tensors["score.weight"].dtype, torch.float32)
        x = pooled.to(torch.promote_types(pooled.dtype, wide))
        for i in range(self.config.depth):
            x = self._drop(x, generator)
            weight, inner = self.tensors[f"score_layers.{i}.weight"], self.tensors[f"score_layers.{i}.bias"]
            x = _ACTIVATIONS[self.config.activation](F.linear(x, weight.to(x.dtype), inner.to(x.dtype)))
        bias = self.tensors["score.bias"].to(x.dtype) if self.config.bias else None
        return F.linear(self._drop(x, generator), self.tensors["score.weight"].to(x.dtype), bias)

    def _drop(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or self.config.dropout == 0.0:
            return x
        keep = torch.rand(x.shape, generator=generator, device=x.device) >= self.config.dropout
        return x * keep / (1.0 - self.config.dropout)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def pool(hidden: Tensor, lengths: Tensor, skip: Tensor, pooling: Pooling) -> Tensor:
    """[B,T,H] right-padded, lengths [B] with virtual tokens, skip [B] virtual tokens -> [B,H] (``last`` or ``mean``).

    The mean is over the text's own tokens only, in at least fp32; padding and virtual tokens have no part in it.
    """
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if pooling == "last":
        return hidden[rows, lengths - 1]
    index = torch.arange(hidden.shape[1], device=hidden.device)[None, :]
    own = (index >= skip[:, None]) & (index < lengths[:, None])
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    total = torch.where(own[..., None], wide, wide.new_zeros(())).sum(1)
    return total / own.sum(1, keepdim=True)
