"""Attention of decoding rows by ``attention.c``, of chunks of prompts by ``prompt.c``.

Shape letters here:  R decoding rows   B tokens of the step   N query heads   G key/value heads   D head width
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from umbel.backbone.native import Kernels
from umbel.core.shape import BackboneShape
from umbel.engine.kv import KVCache, round_up
from umbel.engine.native_part import at, numbers
from umbel.engine.span import Span

_LEAST_PART = 16
_MOST_PART = 128
"""Tokens of one task. What it unpacks of the keys is used by all of them; what it holds stays in the core's cache."""
_TASKS = 4
"""Tasks of each thread, so that none waits long for the last."""


class _Tensors(ctypes.Structure):
    """What both structures of the C files begin with."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        *((name, ctypes.c_int64) for name in ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("slot_stride", "head_stride")),
        ("context", ctypes.c_void_p),
    )


class _Decode(_Tensors):
    """``Decode`` of attention.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "positions")),
        *((name, ctypes.c_int64) for name in ("rows", "kv_heads", "group", "d")),
        ("scale", ctypes.c_float),
        ("scores", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("room", "shared")),
    )


class _Prompt(_Tensors):
    """``Prompt`` of prompt.c."""

    _fields_ = (
        ("spans", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "kv_heads", "group", "d")),
        ("scale", ctypes.c_float),
        ("part", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    )


class NativeDecode:
    """One step's decoding rows: row i stands at ``positions[i]`` in ``slots[i]`` of the cache. Several may be
    places of one slot, one behind the other."""

    def __init__(
        self, kernels: Kernels, cache: KVCache, shape: BackboneShape, positions: Sequence[int], slots: Sequence[int]
    ) -> None:
        self._run, self._cache = kernels.library.umbel_decode, cache
        self._threads = torch.get_num_threads()
        group, room = shape.heads // shape.kv_heads, round_up(max(positions) + 1)
        self._slots, self._positions = numbers(slots), numbers(positions)
        self._scores = torch.empty(self._threads, group, room)
        slab = cache.layer(0)[0]
        self._told = _Decode(
            slot_stride=slab.stride(0), head_stride=slab.stride(1),
            slots=at(self._slots), positions=at(self._positions),
            rows=len(positions), kv_heads=shape.kv_heads, group=group, d=shape.head_dim, scale=shape.head_dim**-0.5,
            scores=self._scores.data_ptr(), room=room, shared=len(set(slots)) < len(slots),
        )  # fmt: skip

    @property
    def told(self) -> "_Tensors":
        """Without what is read and written."""
        return self._told

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotated q [R,N,1,D], k and v [R,G,1,D], features side by side -> [R,N,1,D]."""
        assert q.stride(3) == k.stride(3) == v.stride(3) == 1
        context = torch.empty(q.shape, dtype=q.dtype)
        _tell(self._told, self._cache.layer(layer), q, k, v, context)
        self._run(ctypes.byref(self._told), self._threads)
        return context


class NativePrompt:
    """One step's chunks of prompts."""

    def __init__(self, kernels: Kernels, cache: KVCache, shape: BackboneShape, spans: Sequence[Span]) -> None:
        self._run, self._cache = kernels.library.umbel_prompt, cache
        self._threads = torch.get_num_threads()
        group = shape.heads // shape.kv_heads
        part = _part(sum(span.count for span in spans) * shape.kv_heads, self._threads)
        room = kernels.library.umbel_prompt_room(part, group, shape.head_dim)
        self._spans = torch.tensor([(span.slot, span.start, span.count, span.at) for span in spans])
        self._scratch = torch.empty(self._threads, room)
        slab = cache.layer(0)[0]
        self._told = _Prompt(
            slot_stride=slab.stride(0), head_stride=slab.stride(1),
            spans=self._spans.data_ptr(), count=len(spans), kv_heads=shape.kv_heads, group=group, d=shape.head_dim,
            scale=shape.head_dim**-0.5, part=part, scratch=self._scratch.data_ptr(),
        )  # fmt: skip

    @property
    def told(self) -> "_Tensors":
        """Without what is read and written."""
        return self._told

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Tensor) -> None:
        """Rotated q [B,N,1,D], k and v [B,G,1,D], features side by side; fills the spans' rows of context [B,N,1,D]."""
        assert q.stride(3) == k.stride(3) == v.stride(3) == 1
        assert context.is_contiguous()
        _tell(self._told, self._cache.layer(layer), q, k, v, context)
        self._run(ctypes.byref(self._told), self._threads)


def _part(tokens: int, threads: int) -> int:
    """Tokens of one task, where all key heads together have so many to do."""
    return min(max(round_up(tokens // (threads * _TASKS), _LEAST_PART), _LEAST_PART), _MOST_PART)


def tell_rows(told: _Tensors, cache: KVCache, shape: BackboneShape, qkv: Tensor, context: Tensor) -> None:
    """Queries, keys and values side by side in rows of qkv [B,(N+2G)D]; the cache's first layer."""
    head = shape.head_dim * qkv.element_size()
    told.q = qkv.data_ptr()
    told.k = told.q + shape.heads * head
    told.v = told.k + shape.kv_heads * head
    told.q_row = told.k_row = told.v_row = qkv.stride(0)
    told.q_head = told.k_head = told.v_head = shape.head_dim
    _tell_where(told, cache.layer(0), context)


def _tell(told: _Tensors, slabs: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, context: Tensor) -> None:
    told.q, told.q_row, told.q_head = q.data_ptr(), q.stride(0), q.stride(1)
    told.k, told.k_row, told.k_head = k.data_ptr(), k.stride(0), k.stride(1)
    told.v, told.v_row, told.v_head = v.data_ptr(), v.stride(0), v.stride(1)
    _tell_where(told, slabs, context)


def _tell_where(told: _Tensors, slabs: tuple[Tensor, Tensor], context: Tensor) -> None:
    keys, values = slabs
    told.keys, told.values, told.context = keys.data_ptr(), values.data_ptr(), context.data_ptr()
