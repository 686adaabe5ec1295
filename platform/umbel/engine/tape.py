"""All layers of a step in one call from Python: the same functions of the kernels, in the same order, on buffers that
stay where they are.

At one row a call costs more in Python and torch than a small layer's work does, and there are ten of them in a layer.
What is called changes only with who is worn; what differs from step to step stands in one structure (``Now``).

Behind the attention of the last layer most of a prompt's tokens have done what they are there for: their keys and
values are written, and nobody reads their states. The rest of that layer is done for the others alone, moved to the
front of the same buffers.

Shape letters here:  B tokens of the step   H hidden   N query heads   D head width
"""

import ctypes
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.adapters.sites import Composite, Sites
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Decoder, Layer, RMSNorm
from umbel.backbone.native import Kernels, NativeLinear, Product
from umbel.core.shape import BackboneShape
from umbel.engine.attention import CachedAttention
from umbel.engine.native_part import Call, NativePart, Room, address

_SITES = ("qkv", "o", "gate_up", "down")
_LEAST_ROWS = 64
_KEPT = 16
"""Lists of calls."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """The states of a step that somebody reads."""

    places: Sequence[int]
    """In the batch, rising."""
    parts: Sequence[NativePart]
    """What acts on them, where they are all that there is in the batch."""


class _Norm(ctypes.Structure):
    """``Norm`` of pointwise.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "more", "weight", "y")),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


class _Rotate(ctypes.Structure):
    """``Rotate`` of pointwise.c."""

    _fields_ = (("x", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("stride", "heads", "d")))


class _Silu(ctypes.Structure):
    """``Silu`` of pointwise.c."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("x", "y")), ("width", ctypes.c_int64))


class _Layer(ctypes.Structure):
    """``Layer`` of tape.h."""

    _fields_ = (("layer", ctypes.c_int64),)


class _Now(ctypes.Structure):
    """``Now`` of tape.h."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "decode", "prompt")),
        ("layer_stride", ctypes.c_int64),
    )


_Named = tuple[str, Call | None]
"""What is done, which adapters of that name act behind, and the call that does it."""
_Added = dict[tuple[int, str], list[Call]]
"""Calls of adapters, by layer and by the name of what they follow."""


class _Bare:
    """The backbone's own calls, on one room."""

    def __init__(self, decoder: Decoder, shape: BackboneShape, kernels: Kernels, room: Room) -> None:
        self.room, self._shape, self._kernels = room, shape, kernels
        self._told: list[ctypes.Structure] = []
        self.layers: list[list[_Named]] = []
        more: Tensor | None = None
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            self.layers.append(list(self._layer(layer, more)))
            more = room.out
        self.last = self._norm(room.out, None)
        products = [told for told in self._told if isinstance(told, Product)]
        for product, following in pairwise(products):
            product.next = ctypes.addressof(following)

    @property
    def last_layer(self) -> tuple[list[_Named], list[_Named]]:
        """What the last layer does up to its attention, and behind it."""
        calls = self.layers[-1]
        behind = 1 + [name for name, _ in calls].index("attend")
        return calls[:behind], calls[behind:]

    def _layer(self, layer: Layer, more: Tensor | None) -> Iterator[_Named]:
        """Calls by the name of what they do; adapters of that name act behind them."""
        room, shape = self.room, self._shape
        index = _Layer(layer=layer.index)
        turned = shape.heads + shape.kv_heads
        rotate = _Rotate(x=room.qkv.data_ptr(), stride=room.qkv.stride(0), heads=turned, d=shape.head_dim)
        silu = _Silu(x=room.gate_up.data_ptr(), y=room.act.data_ptr(), width=room.act.shape[1])
        yield "norm", self._norm(more, layer.attention_norm)
        yield from self._site(layer, "qkv")
        yield "rotate", self._call("rotate", rotate)
        yield "decode", self._call("decode", index)
        yield "attend", self._call("prompt", index)
        yield from self._site(layer, "o")
        yield "norm", self._norm(room.out, layer.mlp_norm)
        yield from self._site(layer, "gate_up")
        yield "silu", self._call("silu_mul", silu)
        yield from self._site(layer, "down")
        yield "mlp", None

    def _site(self, layer: Layer, site: str) -> Iterator[_Named]:
        yield f"{site}.in", None
        linear = getattr(layer, site)
        assert isinstance(linear, NativeLinear)
        x, y = self.room.of_site(site)
        yield site, self._call("linear", linear.told(x, y, self.room.codes))

    def _norm(self, more: Tensor | None, norm: RMSNorm | None) -> Call:
        room = self.room
        weight, eps = (norm.weight, norm.eps) if norm is not None else (None, 0.0)
        told = _Norm(
            x=room.x.data_ptr(), more=None if more is None else more.data_ptr(),
            weight=None if weight is None else weight.data_ptr(), y=room.h.data_ptr(), width=room.x.shape[1], eps=eps,
        )  # fmt: skip
        return self._call("norm", told)

    def _call(self, name: str, structure: ctypes.Structure) -> Call:
        self._told.append(structure)
        return address(self._kernels, f"umbel_tape_{name}"), ctypes.addressof(structure)


class Tape:
    """Written anew when other adapters are worn or when a step has more rows than any before it."""

    def __init__(self, backbone: Backbone, kernels: Kernels) -> None:
        self._decoder, self._shape, self._kernels = backbone.decoder, backbone.shape, kernels
        self._run = kernels.library.umbel_tape
        self._bare: _Bare | None = None
        self._entries: OrderedDict[tuple[NativePart, ...], tuple[NDArray[np.int64], int]] = OrderedDict()
        """Of a few steps: rows that guess are as many in one step and as many in another."""
        self._now = _Now()

    @classmethod
    def of(cls, backbone: Backbone) -> "Tape | None":
        """None where a layer does something that is not the kernels'."""
        kernels = backbone.kernels
        return cls(backbone, kernels) if kernels is not None and _all_native(backbone.decoder) else None

    @staticmethod
    def takes(sites: Sites) -> bool:
        """Whether all that acts in the layers is the kernels'."""
        return isinstance(sites, Composite) and all(isinstance(part, NativePart) for part in sites.in_layers)

    def through(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: CachedAttention,
        sites: Sites,
        read: Read | None = None,
    ) -> Tensor:
        """The hidden states [B,1,H] behind the last layer: a view that the next step writes to.

        Where it is told which of them are ``read``, the others are what the last layer was given.
        """
        rows = len(x)
        room = self._room_for(rows)
        entries, behind = self._for(tuple(_native(sites)))
        room.x[:rows].copy_(x[:, 0])
        cosines, sines = (part.contiguous() for part in rotation)
        now = self._now
        now.rows, now.cosines, now.sines = rows, cosines.data_ptr(), sines.data_ptr()
        now.layer_stride = attention.cache.slabs.stride(0)
        decode, prompt = attention.told(room.qkv, room.context)
        now.decode, now.prompt = _at(decode), _at(prompt)
        self._play(entries if read is None else entries[:behind])
        return room.x[:rows, None] if read is None else self._end(room, rows, read)

    def _end(self, room: Room, rows: int, read: Read) -> Tensor:
        states = room.x[:rows].clone()
        if read.places:
            places, count = torch.tensor(read.places), len(read.places)
            room.x[:count] = room.x.index_select(0, places)
            room.context[:count] = room.context.index_select(0, places)
            self._now.rows = count
            self._play(np.array(self._end_of(self._added(read.parts, self._last)), np.int64))
            states[places] = room.x[:count]
        return states[:, None]

    def _play(self, entries: NDArray[np.int64]) -> None:
        self._run(
            ctypes.c_void_p(entries.ctypes.data), ctypes.c_int64(len(entries)), ctypes.byref(self._now),
            torch.get_num_threads(),
        )  # fmt: skip

    def _room_for(self, rows: int) -> Room:
        threads = torch.get_num_threads()
        if self._bare is None or rows > len(self._bare.room.x) or threads > self._bare.room.threads:
            room = Room.of(self._shape, max(_LEAST_ROWS, 1 << (rows - 1).bit_length()))
            self._bare = _Bare(self._decoder, self._shape, self._kernels, room)
            self._entries.clear()
        return self._bare.room

    def _for(self, parts: tuple[NativePart, ...]) -> tuple[NDArray[np.int64], int]:
        """The calls with what these parts do, written unless they are known, and how many of them come before the end.
        A part is asked for its calls once, since it holds what they are told."""
        known = self._entries.get(parts)
        if known is None:
            while len(self._entries) >= _KEPT:
                self._entries.popitem(last=False)
            added = self._added(parts, range(self._last.stop))
            beginning = self._beginning_of(added)
            known = np.array(beginning + self._end_of(added), np.int64), len(beginning)
            self._entries[parts] = known
        return known

    @property
    def _last(self) -> range:
        layers = len(self._decoder.layers)
        return range(layers - 1, layers)

    def _added(self, parts: Sequence[NativePart], layers: range) -> _Added:
        assert self._bare is not None
        added: _Added = {}
        for part in parts:
            for place, call in part.calls(self._bare.room, self._decoder, layers).items():
                added.setdefault(place, []).append(call)
        return added

    def _beginning_of(self, added: _Added) -> list[Call]:
        """Up to the attention of the last layer."""
        assert self._bare is not None
        found: list[Call] = []
        for index in range(self._last.start):
            found += _calls(self._bare.layers[index], index, added)
        return found + _calls(self._bare.last_layer[0], self._last.start, added)

    def _end_of(self, added: _Added) -> list[Call]:
        """What comes behind it."""
        assert self._bare is not None
        return [*_calls(self._bare.last_layer[1], self._last.start, added), self._bare.last]


def _calls(named: Sequence[_Named], index: int, added: _Added) -> list[Call]:
    """A layer's own calls, and behind each those of adapters."""
    found: list[Call] = []
    for name, own in named:
        found += [] if own is None else [own]
        found += added.get((index, name), ())
    return found


def _native(sites: Sites) -> list[NativePart]:
    assert isinstance(sites, Composite)
    return [part for part in sites.parts if isinstance(part, NativePart)]


def _all_native(decoder: Decoder) -> bool:
    linears = [getattr(layer, site) for layer in decoder.layers for site in _SITES]
    return all(isinstance(linear, NativeLinear) for linear in linears)


def _at(structure: ctypes.Structure | None) -> int | None:
    return None if structure is None else ctypes.addressof(structure)
