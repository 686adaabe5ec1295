"""LLaMA-Adapter's gated attention of a whole step by ``gated.c``."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from umbel.adapters.methods.llama_adapter import LlamaAdapterBatch
from umbel.adapters.sites import Frozen
from umbel.backbone.decoder import Decoder
from umbel.backbone.native import Kernels
from umbel.engine.kv import round_up
from umbel.engine.native_part import Calls, Group, Layout, NativePart, Record, Room, dtypes_are
from umbel.engine.slots import Stack

_FIELDS = ("keys", "values", "gate", "gate_step", "length", "first", "count")
"""``Group`` of gated.c."""


class _Site(ctypes.Structure):
    """``Site`` of gated.c."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("q_row", "q_head")),
        *((name, ctypes.c_void_p) for name in ("context", "rows")),
        *((name, ctypes.c_int64) for name in ("kv_heads", "group", "d")),
        ("scale", ctypes.c_float),
        ("scores", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class NativeGated(NativePart):
    """One place for each layer, after its attention."""

    acts = "length"

    @classmethod
    def fits(cls, stack: Stack) -> bool:
        return stack.method.batch.kind_for(stack.tensors) is LlamaAdapterBatch and dtypes_are(stack, wide=["gate"])

    @classmethod
    def layout(cls, stack: Stack) -> Layout:
        record, length = Record(_FIELDS, stack.shape.layers), 0
        for layer in range(stack.shape.layers):
            if (gate := stack.tensors.get((layer, "gate"))) is not None:
                keys, values = stack.tensors[layer, "K"], stack.tensors[layer, "V"]
                for field, tensor in (("keys", keys), ("values", values), ("gate", gate)):
                    record.point(layer, field, tensor)
                length = keys.shape[2]
                record.put(layer, length=length, gate_step=int(gate.shape[1] > 1))
        return Layout(record, length, stack.shape)

    def __init__(self, kernels: Kernels, groups: Sequence[Group]) -> None:
        super().__init__(kernels, groups)
        self._run = kernels.library.umbel_gated
        shape, room = self._shape, round_up(self._most)
        group = shape.heads // shape.kv_heads
        self._scores = torch.empty(self._threads, group, room)
        self._told = _Site(
            rows=self._rows.data_ptr(), kv_heads=shape.kv_heads, group=group, d=shape.head_dim,
            scale=shape.head_dim**-0.5, scores=self._scores.data_ptr(), room=room,
        )  # fmt: skip

    def attend(self, layer: int, q: Tensor, context: Tensor, frozen: Frozen) -> Tensor:
        """Rotated q and context [B,N,1,D], q's features side by side; written into context."""
        if not self._acting[layer]:
            return context
        assert q.stride(3) == 1
        assert context.is_contiguous()
        told = self._told
        told.q, told.q_row, told.q_head, told.context = q.data_ptr(), q.stride(0), q.stride(1), context.data_ptr()
        self._run(ctypes.byref(told), ctypes.c_void_p(self._at(layer)), ctypes.c_int64(self._count), self._threads)
        return context

    def calls(self, room: Room, decoder: Decoder, layers: range) -> Calls:
        own = self._told_room = _Site.from_buffer_copy(self._told)
        own.q, own.q_row, own.q_head = room.qkv.data_ptr(), room.qkv.stride(0), self._shape.head_dim
        own.context = room.context.data_ptr()
        acting = [layer for layer in layers if self._acting[layer]]
        told = {(layer, "attend"): (ctypes.addressof(own), self._at(layer), self._count) for layer in acting}
        return self._listed("umbel_tape_gated", told)
