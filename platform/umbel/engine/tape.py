"""A whole step in one call from Python, from token ids to the likeliest next tokens: the same functions of the kernels,
in the same order, on buffers that stay where they are.

At one row a call costs more in Python and torch than a small layer's work does, and there are ten of them in a layer.
What is called changes only with who is worn; what differs from step to step stands in one structure (``Now``).

Behind the attention of the last layer most of a prompt's tokens have done what they are there for: their keys and
values are written, and nobody reads their states. The rest of that layer is done for the others alone, moved to the
front of the same buffers.

Shape letters here:  B tokens of the step   M places whose next token is wanted   H hidden   V vocabulary
                     P positions   D head width
"""

import ctypes
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.adapters.sites import Composite, Sites
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Decoder
from umbel.backbone.native import Kernels, NativeLinear
from umbel.engine.attention import CachedAttention
from umbel.engine.bare_calls import MOST_PLACES, BareCalls, Named, Next
from umbel.engine.native_part import Call, NativePart, Room, at, numbers

_SITES = ("qkv", "o", "gate_up", "down")
_LEAST_ROWS = 64
_LEAST_POSITIONS = 256
_KEPT = 16
"""Lists of calls."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """The states of a step that somebody reads."""

    places: Sequence[int]
    """In the batch, rising."""
    parts: Sequence[NativePart]
    """What acts on them, where they are all that there is in the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What a step came to. The next one writes to the same memory."""

    hidden: Tensor
    """[B,H] after the last norm; of states that nobody reads, what the last layer was given."""
    logits: Tensor | None
    """[M,V]; None where they were not asked for or are too many for a tape."""
    best: Sequence[float] = ()
    tokens: Sequence[int] = ()
    """The largest logit of each place and where it stands first; NaN is the largest."""


class _Now(ctypes.Structure):
    """``Now`` of tape.h."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "cosines", "sines", "decode", "prompt")),
        ("layer_stride", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("places", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _List:
    """Calls with what some parts do."""

    entries: NDArray[np.int64]
    behind: int
    """How many of them come before what only states that are read go through."""
    norm: int
    """How many come before what only wanted places go through."""


_Added = dict[tuple[int, str], list[Call]]
"""Calls of adapters, by layer and by the name of what they follow."""


class Tape:
    """Written anew when other adapters are worn or when a step has more rows than any before it."""

    def __init__(self, backbone: Backbone, kernels: Kernels) -> None:
        self._decoder, self._shape, self._kernels = backbone.decoder, backbone.shape, kernels
        self._run = kernels.library.umbel_tape
        self._next = Next(self._shape.hidden, self._shape.vocab)
        self._bare: BareCalls | None = None
        self._lists: OrderedDict[tuple[NativePart, ...], _List] = OrderedDict()
        """Of a few steps: rows that guess are as many in one step and as many in another."""
        self._now = _Now()
        self._angles = self._angles_of(range(_LEAST_POSITIONS))

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
        tokens: Sequence[int],
        positions: Sequence[int],
        attention: CachedAttention,
        sites: Sites,
        *,
        places: Sequence[int] = (),
        read: Read | None = None,
    ) -> Played:
        """A step of these tokens [B] at their positions [B]. ``places`` [M] of the batch are those whose next token is
        wanted. Where it is told which states are ``read``, among them those, nothing else comes of the others."""
        rows, wanted = len(tokens), numbers(places if len(places) <= MOST_PLACES else ())
        asked = numbers(tokens), numbers(positions)
        room = self._room_for(rows)
        calls = self._list_for(tuple(_native(sites)))
        now = self._now
        now.rows, now.places = rows, len(wanted)
        now.tokens, now.positions, now.wanted = at(asked[0]), at(asked[1]), at(wanted)
        now.cosines, now.sines = (part.data_ptr() for part in self._angles_to(max(positions)))
        now.layer_stride = attention.cache.slabs.stride(0)
        now.decode, now.prompt = (_where(told) for told in attention.told(room.qkv, room.context))
        first = int(self._embedded(room, tokens, positions, sites))
        if read is None:
            self._play(calls.entries[first : None if wanted else calls.norm])
            return self._played(room.h[:rows], len(wanted))
        self._play(calls.entries[first : calls.behind])
        return self._played(self._end(room, rows, read, wanted), len(wanted))

    def _embedded(self, room: Room, tokens: Sequence[int], positions: Sequence[int], sites: Sites) -> bool:
        """Whether the states that go into the first layer are there already: adapters act on embeddings in torch."""
        assert isinstance(sites, Composite)
        if not sites.embeds:
            return False
        ids, places = (torch.tensor(values)[:, None] for values in (tokens, positions))
        room.x[: len(tokens)] = sites.embed(self._decoder.embedding(ids), places, ids)[:, 0]
        return True

    def _end(self, room: Room, rows: int, read: Read, wanted: "array[int]") -> Tensor:
        states = room.x[:rows].clone()
        if read.places:
            assert self._bare is not None
            places, count = torch.tensor(read.places), len(read.places)
            room.x[:count] = room.x.index_select(0, places)
            room.context[:count] = room.context.index_select(0, places)
            moved = {place: i for i, place in enumerate(read.places)}
            front = numbers([moved[place] for place in wanted])
            self._now.rows, self._now.wanted = count, at(front)
            calls = self._end_of(self._added(read.parts, self._last)) + (self._bare.ends if wanted else [])
            self._play(np.array(calls, np.int64))
            states[places] = room.h[:count]
        return states

    def _played(self, hidden: Tensor, places: int) -> Played:
        assert self._bare is not None
        found = self._next
        if not (places and self._bare.ends):
            return Played(hidden, None)
        return Played(hidden, found.logits[:places], found.best[:places], found.tokens[:places])

    def _play(self, entries: NDArray[np.int64]) -> None:
        self._run(
            ctypes.c_void_p(entries.ctypes.data), ctypes.c_int64(len(entries)), ctypes.byref(self._now),
            torch.get_num_threads(),
        )  # fmt: skip

    def _angles_to(self, last: int) -> tuple[Tensor, Tensor]:
        """Of all positions up to the last one; those that were known stay as they are."""
        known = len(self._angles[0])
        if last >= known:
            more = self._angles_of(range(known, 1 << last.bit_length()))
            self._angles = torch.cat([self._angles[0], more[0]]), torch.cat([self._angles[1], more[1]])
        return self._angles

    def _angles_of(self, positions: range) -> tuple[Tensor, Tensor]:
        """cos and sin [P,D]."""
        at = torch.arange(positions.start, positions.stop)
        cosines, sines = self._decoder.rotation(at[:, None], torch.bfloat16)
        return cosines.view(len(at), -1), sines.view(len(at), -1)

    def _room_for(self, rows: int) -> Room:
        threads = torch.get_num_threads()
        if self._bare is None or rows > len(self._bare.room.x) or threads > self._bare.room.threads:
            room = Room.of(self._shape, max(_LEAST_ROWS, 1 << (rows - 1).bit_length()), self._kernels)
            self._bare = BareCalls(self._decoder, self._shape, self._kernels, room, self._next)
            self._lists.clear()
        return self._bare.room

    def _list_for(self, parts: tuple[NativePart, ...]) -> _List:
        """The calls with what these parts do, written unless they are known. A part is asked for its calls once, since
        it holds what they are told."""
        known = self._lists.get(parts)
        if known is None:
            assert self._bare is not None
            while len(self._lists) >= _KEPT:
                self._lists.popitem(last=False)
            added = self._added(parts, range(self._last.stop))
            beginning = self._beginning_of(added)
            whole = beginning + self._end_of(added)
            known = _List(np.array(whole + self._bare.ends, np.int64), len(beginning), len(whole))
            self._lists[parts] = known
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
        found: list[Call] = [self._bare.embed]
        for index in range(self._last.start):
            found += _calls(self._bare.layers[index], index, added)
        return found + _calls(self._bare.last_layer[0], self._last.start, added)

    def _end_of(self, added: _Added) -> list[Call]:
        """What comes behind it, up to the last norm."""
        assert self._bare is not None
        return [*_calls(self._bare.last_layer[1], self._last.start, added), self._bare.norm]


def _calls(named: Sequence[Named], index: int, added: _Added) -> list[Call]:
    """A layer's own calls, and behind each those of adapters."""
    found: list[Call] = []
    for name, own in named:
        found += [] if own is None else [own]
        found += added.get((index, name), ())
    return found


def _native(sites: Sites) -> list[NativePart]:
    assert isinstance(sites, Composite)
    return [part for part in sites.parts if isinstance(part, NativePart)]


def _where(structure: ctypes.Structure | None) -> int | None:
    return None if structure is None else ctypes.addressof(structure)


def _all_native(decoder: Decoder) -> bool:
    linears = [getattr(layer, site) for layer in decoder.layers for site in _SITES]
    return all(isinstance(linear, NativeLinear) for linear in linears)
