"""IA3's scales of a whole step by ``pointwise.c``."""

import ctypes

from torch import Tensor

from umbel.adapters.methods.ia3 import IA3Batch
from umbel.adapters.sites import LM_HEAD, Frozen
from umbel.backbone.decoder import Decoder
from umbel.engine.native_part import Calls, Layout, NativePart, Record, Room, dtypes_are
from umbel.engine.slots import Stack

_SIDES = tuple(f"{site}.{side}" for site in ("qkv", "o", "gate_up", "down") for side in ("in", "out"))
_PLACE = {side: place for place, side in enumerate(_SIDES)}
_FIELDS = ("scale", "first", "count")
"""``Scaled`` of pointwise.c."""


class NativeScales(NativePart):
    """A place for each side of each site."""

    acts = "scale"

    @classmethod
    def fits(cls, stack: Stack) -> bool:
        return stack.method.batch.kind_for(stack.tensors) is IA3Batch and dtypes_are(stack, wide=["in", "out"])

    @classmethod
    def layout(cls, stack: Stack) -> Layout:
        record = Record(_FIELDS, stack.shape.layers * len(_SIDES))
        for layer in range(stack.shape.layers):
            for place, side in enumerate(_SIDES):
                record.point(layer * len(_SIDES) + place, "scale", stack.tensors.get((layer, side)))
        return Layout(record, 0, stack.shape)

    def input(self, layer: int, site: str, x: Tensor) -> Tensor:
        return self._scaled(layer, f"{site}.in", x)

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        return y if layer == LM_HEAD else self._scaled(layer, f"{site}.out", y)

    def _scaled(self, layer: int, side: str, x: Tensor) -> Tensor:
        """x [B,1,F]; written into it."""
        if not self._acting[at := layer * len(_SIDES) + _PLACE[side]]:
            return x
        assert x.is_contiguous()
        self._kernels.library.umbel_scale(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.shape[-1]), ctypes.c_void_p(self._rows.data_ptr()),
            ctypes.c_void_p(self._at(at)), ctypes.c_int64(self._count), ctypes.c_int64(len(self._rows)), self._threads,
        )  # fmt: skip
        return x

    def calls(self, room: Room, decoder: Decoder, layers: range) -> Calls:
        told = {}
        places = range(layers.start * len(_SIDES), layers.stop * len(_SIDES))
        for place in (place for place in places if self._acting[place]):
            layer, side = divmod(place, len(_SIDES))
            site, end = _SIDES[side].split(".")
            x, y = room.of_site(site)
            scaled, name = (x, f"{site}.in") if end == "in" else (y, site)
            told[layer, name] = (
                scaled.data_ptr(), scaled.shape[1], self._rows.data_ptr(), self._at(place), self._count, len(self._rows)
            )  # fmt: skip
        return self._listed("umbel_tape_scale", told)
