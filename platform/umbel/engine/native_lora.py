"""LoRA of a whole step by ``lora.c``: all ranks and adapters at once, weights read from where the bank keeps them.

Only what a site adds to its linear is done here; adapters of other methods, and LoRA's own ends (embeddings, lm_head,
biases, token rows), stay with ``Batch``.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umbel.adapters.lora_batch import LoraBatch
from umbel.adapters.sites import LM_HEAD, SITES, Frozen, Sites
from umbel.backbone.native import Kernels
from umbel.core.shape import BackboneShape
from umbel.engine.slots import Stack

_SITES = ("qkv", "o", "gate_up", "down")
_PLACE = {site: place for place, site in enumerate(_SITES)}
_SEGMENTS = 3
_SEGMENT = ("b", "start", "rank", "column", "width", "block")
_FIELDS = ("a", "rank", "first", "count", *(f"{name}{i}" for i in range(_SEGMENTS) for name in _SEGMENT),
           *(f"scale{i}" for i in range(_SEGMENTS)))  # fmt: skip
_GROUP = np.dtype([(name, np.int64) for name in _FIELDS])
"""``Group`` of lora.c, whose members all have eight bytes."""


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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a stack's weights lie, as long as it is not laid out anew; slot i is at ``base + i * step``."""

    base: np.ndarray
    """[layers * 4, fields] int64."""
    step: np.ndarray
    most: int
    """The largest sum of ranks at any site."""
    shape: BackboneShape

    @classmethod
    def of(cls, stack: Stack) -> "Layout":
        layers = stack.shape.layers
        base, step = (np.zeros(layers * len(_SITES), _GROUP) for _ in range(2))
        for layer in range(layers):
            for place, site in enumerate(_SITES):
                at = layer * len(_SITES) + place
                _fill(base[at], step[at], stack, layer, site)
        return cls(_plain(base), _plain(step), int(base["rank"].max()), stack.shape)


def _plain(records: np.ndarray) -> np.ndarray:
    return records.view(np.int64).reshape(len(records), len(_FIELDS))


def _fill(base: np.void, step: np.void, stack: Stack, layer: int, site: str) -> None:
    a = stack.tensors.get((layer, f"{site}.A"))
    if a is None:
        return
    _point(base, step, "a", a)
    base["rank"] = a.shape[1]
    blocks = stack.tensors.get((layer, f"{site}.blocks"))
    start = column = used = 0
    for i, name in enumerate(SITES[site]):
        width = stack.shape.linear(name)[1]
        b = blocks if blocks is not None else stack.tensors.get((layer, f"{name}.B"))
        if b is not None:
            rank, block = b.shape[-2], b.shape[-1]
            _point(base, step, f"b{i}", b, used * rank * block * b.element_size())
            for field, value in zip(_SEGMENT[1:], (start, rank, column, width, block), strict=True):
                base[f"{field}{i}"] = value
            start, used = start + rank, used + (width // block if blocks is not None else 0)
        if (scale := stack.tensors.get((layer, f"{name}.scale"))) is not None:
            _point(base, step, f"scale{i}", scale)
        column += width


def _point(base: np.void, step: np.void, field: str, tensor: Tensor, offset: int = 0) -> None:
    assert tensor[0].is_contiguous()
    base[field] = tensor.data_ptr() + offset
    step[field] = tensor.stride(0) * tensor.element_size()


class NativeLora(Sites):
    """Adapters of any stacks in one batch; ``groups`` says which places of the batch wear which slot."""

    def __init__(
        self,
        kernels: Kernels,
        groups: Sequence[tuple[Layout, int, Sequence[int]]],
    ) -> None:
        self._run, self._threads = kernels.library.umbel_lora, torch.get_num_threads()
        self._count = len(groups)
        rows = [row for _, _, places in groups for row in places]
        most = max(layout.most for layout, _, _ in groups)
        self._rows = torch.tensor(rows, dtype=torch.int32)
        self._h = torch.empty(len(rows), most)
        self._table = _table(groups)
        self._acts: list[bool] = np.any(self._table[:, :, 1] > 0, axis=1).tolist()
        self._at = self._table.ctypes.data
        self._site_bytes = self._table[0].nbytes
        self._told = {site: self._tell(site, most, groups[0][0].shape) for site in _SITES}

    def _tell(self, site: str, most: int, shape: BackboneShape) -> _Site:
        d_in, d_out = shape.linear(SITES[site][0])[0], sum(shape.linear(name)[1] for name in SITES[site])
        return _Site(x_stride=d_in, d=d_in, y_stride=d_out, rows=self._rows.data_ptr(), h=self._h.data_ptr(), most=most)

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        """x [B,1,in], y [B,1,out]; written into y."""
        if layer == LM_HEAD or not self._acts[at := layer * len(_SITES) + _PLACE[site]]:
            return y
        x, told, bias = x.contiguous(), self._told[site], frozen.bias(site)
        assert y.is_contiguous()
        told.x, told.y, told.bias = x.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr()
        groups = ctypes.c_void_p(self._at + at * self._site_bytes)
        self._run(ctypes.byref(told), groups, ctypes.c_int64(self._count), self._threads)
        return y


def _table(groups: Sequence[tuple[Layout, int, Sequence[int]]]) -> np.ndarray:
    """[sites, groups, fields] int64."""
    table = np.empty((groups[0][0].base.shape[0], len(groups), len(_FIELDS)), np.int64)
    first = 0
    for i, (layout, slot, places) in enumerate(groups):
        np.multiply(layout.step, slot, out=table[:, i])
        table[:, i] += layout.base
        table[:, i, 2], table[:, i, 3] = first, len(places)
        first += len(places)
    return table


def fits(stack: Stack) -> bool:
    """Whether all that the stack's adapters do in a layer is LoRA or DoRA in bf16."""
    kind = stack.method.batch.kind_for(stack.tensors)
    return kind is LoraBatch and all(
        tensor.dtype == (torch.float32 if what.endswith(".scale") else torch.bfloat16)
        for (_, what), tensor in stack.tensors.items()
    )
