"""Activation checkpointing: which activations a backward pass finds kept, and which it computes again.

    none        all are kept
    full        each layer keeps its input only
    every=2     every second layer does, the others keep all
    selective   each layer keeps what its matrix products and its attention gave, and computes norms, RoPE and SiLU
                again: the cheap part of the time and the larger part of the bytes

It changes memory and time, never a result: dropout comes from keys, not from a generator's state.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from umbel.core.errors import ConfigError

FORMS = ("none", "full", "every=K", "selective")


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """``every`` is the distance between recomputed layers: 0 recomputes none, 1 all."""

    every: int = 0
    selective: bool = False

    @classmethod
    def parse(cls, text: str) -> "Checkpointing":
        """Raises ConfigError for what is none of the four forms."""
        if text in _NAMED:
            return _NAMED[text]
        kind, _, number = text.partition("=")
        if kind != "every" or not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"checkpointing {text!r} is not understood.",
                param="checkpointing",
                hint=f"write one of {', '.join(FORMS)}",
            )
        return cls(int(number))

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return "selective" if self.selective else f"every={self.every}" if self.every else "none"

    def run(self, index: int, layer: nn.Module, x: Tensor, step: Any) -> Tensor:
        """``layer(x, step)``. Calls the layer from outside, so that FSDP2's hooks on it run again as well."""
        if not self.every or index % self.every or not torch.is_grad_enabled():
            y: Tensor = layer(x, step)
            return y
        more: dict[str, Any] = {"context_fn": _SELECTIVE} if self.selective else {}
        again: Tensor = checkpoint(layer, x, step, use_reentrant=False, preserve_rng_state=False, **more)
        return again


KEEP_ALL = Checkpointing()
_NAMED = {"none": KEEP_ALL, "full": Checkpointing(1), "selective": Checkpointing(1, selective=True)}

_aten = torch.ops.aten
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def _policy(context: Any, operation: Any, *args: Any, **more: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_SELECTIVE = partial(create_selective_checkpoint_contexts, _policy)
