"""Low-rank corrections of a whole step by ``lora.c``: all ranks and adapters at once, weights read where the bank keeps
them.

Only what a site adds to its linear is done here; LoRA's own ends (embeddings, lm_head, biases, token rows) stay with
``Batch``.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from umbel.adapters.lora_batch import LoraBatch
from umbel.adapters.sites import LM_HEAD, SITES, Frozen
from umbel.backbone.decoder import Decoder, Layer
from umbel.backbone.native import Kernels
from umbel.engine.native_part import Calls, Group, Layout, NativePart, Record, Room, dtypes_are
from umbel.engine.slots import Stack

_SITES = ("qkv", "o", "gate_up", "down")
_PLACE = {site: place for place, site in enumerate(_SITES)}
_SEGMENTS = 3
_SEGMENT = ("b", "start", "rank", "column", "width", "block")
FIELDS = ("a", "rank", "first", "count", *(f"{name}{i}" for i in range(_SEGMENTS) for name in _SEGMENT),
          *(f"scale{i}" for i in range(_SEGMENTS)), "inner", "outer", "activation")  # fmt: skip
"""``Group`` of lora.c."""


class _Site(ctypes.Structure):
    """``Site`` of lora.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_stride", "d")),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("bias", "rows", "h")),
        ("most", ctypes.c_int64),
    )


def copied(told: _Site, x: Tensor, y: Tensor) -> _Site:
    """The same on these two."""
    own = _Site.from_buffer_copy(told)
    own.x, own.y = x.data_ptr(), y.data_ptr()
    return own


class LowRank(NativePart):
    """Calls of ``umbel_lora``."""

    acts = "rank"

    def __init__(self, kernels: Kernels, groups: Sequence[Group]) -> None:
        super().__init__(kernels, groups)
        self._run = kernels.library.umbel_lora
        self._h = torch.empty(len(self._rows), self._most)

    def _tell(self, d_in: int, d_out: int) -> _Site:
        """What stays the same at all places with these widths."""
        rows, h = self._rows.data_ptr(), self._h.data_ptr()
        return _Site(x_stride=d_in, d=d_in, y_stride=d_out, rows=rows, h=h, most=self._most)

    def _correct(self, place: int, told: _Site, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
        """x [B,1,in], y [B,1,out]; written into y."""
        assert y.is_contiguous()
        told.x, told.y, told.bias = x.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr()
        self._run(ctypes.byref(told), ctypes.c_void_p(self._at(place)), ctypes.c_int64(self._count), self._threads)
        return y

    def _told_on(self, site: _Site, place: int, bias: Tensor | None) -> tuple[int, ...]:
        """``Told`` of lora.c."""
        return ctypes.addressof(site), self._at(place), self._count, 0 if bias is None else bias.data_ptr()


class NativeLora(LowRank):
    """LoRA and DoRA."""

    @classmethod
    def fits(cls, stack: Stack) -> bool:
        return stack.method.batch.kind_for(stack.tensors) is LoraBatch and dtypes_are(stack, wide=["scale"])

    @classmethod
    def layout(cls, stack: Stack) -> Layout:
        layers = stack.shape.layers
        record = Record(FIELDS, layers * len(_SITES))
        for layer in range(layers):
            for place, site in enumerate(_SITES):
                _fill(record, layer * len(_SITES) + place, stack, layer, site)
        return Layout(record, int(record.base[:, FIELDS.index("rank")].max()), stack.shape)

    def __init__(self, kernels: Kernels, groups: Sequence[Group]) -> None:
        super().__init__(kernels, groups)
        shape = self._shape
        widths = {
            site: (shape.linear(of[0])[0], sum(shape.linear(name)[1] for name in of)) for site, of in SITES.items()
        }
        self._told = {site: self._tell(*widths[site]) for site in _SITES}

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        if layer == LM_HEAD or not self._acting[at := layer * len(_SITES) + _PLACE[site]]:
            return y
        return self._correct(at, self._told[site], x.contiguous(), y, frozen.bias(site))

    def calls(self, room: Room, decoder: Decoder, layers: range) -> Calls:
        self._told_at = {site: copied(told, *room.of_site(site)) for site, told in self._told.items()}
        acting = {}
        for index in layers:
            layer = decoder.layers[index]
            assert isinstance(layer, Layer)
            for place, site in enumerate(_SITES, index * len(_SITES)):
                if self._acting[place]:
                    acting[index, site] = self._told_on(self._told_at[site], place, layer.bias(site))
        return self._listed("umbel_tape_lora", acting)


def _fill(record: Record, at: int, stack: Stack, layer: int, site: str) -> None:
    a = stack.tensors.get((layer, f"{site}.A"))
    if a is None:
        return
    record.point(at, "a", a)
    record.put(at, rank=a.shape[1])
    blocks = stack.tensors.get((layer, f"{site}.blocks"))
    start = column = used = 0
    for i, name in enumerate(SITES[site]):
        width = stack.shape.linear(name)[1]
        b = blocks if blocks is not None else stack.tensors.get((layer, f"{name}.B"))
        if b is not None:
            rank, block = b.shape[-2], b.shape[-1]
            record.point(at, f"b{i}", b, used * rank * block * b.element_size())
            values = zip(_SEGMENT[1:], (start, rank, column, width, block), strict=True)
            record.put(at, **{f"{field}{i}": value for field, value in values})
            start, used = start + rank, used + (width // block if blocks is not None else 0)
        record.point(at, f"scale{i}", stack.tensors.get((layer, f"{name}.scale")))
        column += width
