"""Attention of decoding rows by ``attention.c``.

Shape letters here:  R decoding rows   N query heads   G key/value heads   D head width
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from umbel.backbone.native import Kernels
from umbel.core.shape import BackboneShape
from umbel.engine.kv import KVCache, round_up


class _Decode(ctypes.Structure):
    """``Decode`` of attention.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        *((name, ctypes.c_int64) for name in ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("slot_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("context", "slots", "positions")),
        *((name, ctypes.c_int64) for name in ("rows", "kv_heads", "group", "d")),
        ("scale", ctypes.c_float),
        ("scores", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class NativeDecode:
    """One step's decoding rows: row i stands at ``positions[i]`` in ``slots[i]`` of the cache."""

    def __init__(
        self, kernels: Kernels, cache: KVCache, shape: BackboneShape, positions: Sequence[int], slots: Sequence[int]
    ) -> None:
        self._run, self._cache = kernels.library.umbel_decode, cache
        self._threads = torch.get_num_threads()
        group, room = shape.heads // shape.kv_heads, round_up(max(positions) + 1)
        self._slots, self._positions = torch.tensor(slots), torch.tensor(positions)
        self._scores = torch.empty(self._threads, group, room)
        slab = cache.layer(0)[0]
        self._told = _Decode(
            slot_stride=slab.stride(0), head_stride=slab.stride(1),
            slots=self._slots.data_ptr(), positions=self._positions.data_ptr(),
            rows=len(positions), kv_heads=shape.kv_heads, group=group, d=shape.head_dim, scale=shape.head_dim**-0.5,
            scores=self._scores.data_ptr(), room=room,
        )  # fmt: skip

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotated q [R,N,1,D], k and v [R,G,1,D], features side by side -> [R,N,1,D]."""
        assert q.stride(3) == k.stride(3) == v.stride(3) == 1
        context = torch.empty(q.shape, dtype=q.dtype)
        told, (keys, values) = self._told, self._cache.layer(layer)
        told.q, told.q_row, told.q_head = q.data_ptr(), q.stride(0), q.stride(1)
        told.k, told.k_row, told.k_head = k.data_ptr(), k.stride(0), k.stride(1)
        told.v, told.v_row, told.v_head = v.data_ptr(), v.stride(0), v.stride(1)
        told.keys, told.values, told.context = keys.data_ptr(), values.data_ptr(), context.data_ptr()
        self._run(ctypes.byref(told), self._threads)
        return context
