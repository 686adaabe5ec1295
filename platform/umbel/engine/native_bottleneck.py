"""Bottleneck adapters of a whole step by ``lora.c``: a low-rank correction with biases and an activation within."""

from collections.abc import Sequence

from torch import Tensor

from umbel.adapters.methods.bottleneck import ACTIVATIONS, BottleneckBatch
from umbel.backbone.decoder import Decoder
from umbel.backbone.native import Kernels
from umbel.engine.native_lora import FIELDS, LowRank, copied
from umbel.engine.native_part import Calls, Group, Layout, Record, Room, dtypes_are
from umbel.engine.slots import Stack

_CODES = {"relu": 1, "gelu": 2, "silu": 3}
"""Of lora.c."""


class NativeBottleneck(LowRank):
    """One place for each layer, after its feed-forward."""

    @classmethod
    def fits(cls, stack: Stack) -> bool:
        return stack.method.batch.kind_for(stack.tensors) is BottleneckBatch and dtypes_are(stack)

    @classmethod
    def layout(cls, stack: Stack) -> Layout:
        record, tensors, hidden = Record(FIELDS, stack.shape.layers), stack.tensors, stack.shape.hidden
        kind = next(kind for kind in ACTIVATIONS if (0, f"down.{kind}") in tensors)
        width = tensors[0, "up"].shape[1]
        for layer in range(stack.shape.layers):
            for field, what in (("a", f"down.{kind}"), ("inner", "down.bias"), ("b0", "up"), ("outer", "up.bias")):
                record.point(layer, field, tensors[layer, what])
            record.put(layer, rank=width, rank0=width, width0=hidden, block0=hidden, activation=_CODES[kind])
        return Layout(record, width, stack.shape)

    def __init__(self, kernels: Kernels, groups: Sequence[Group]) -> None:
        super().__init__(kernels, groups)
        self._told = self._tell(self._shape.hidden, self._shape.hidden)

    def after(self, layer: int, part: str, x: Tensor, h: Tensor) -> Tensor:
        """h [B,1,H]; written into it."""
        return self._correct(layer, self._told, h, h, None) if part == "mlp" else h

    def calls(self, room: Room, decoder: Decoder, layers: range) -> Calls:
        self._told_mlp = copied(self._told, room.out, room.out)
        return self._listed(
            "umbel_tape_lora", {(layer, "mlp"): self._told_on(self._told_mlp, layer, None) for layer in layers}
        )
