"""What the rows of a step wear: slots of the bank's stacks, laid out for the flat batch."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import torch

from umbel.adapters.rows import plan_rows
from umbel.adapters.sites import BARE, Composite, Sites
from umbel.adapters.wear import batch_of
from umbel.backbone.native import Kernels
from umbel.engine.native_bottleneck import NativeBottleneck
from umbel.engine.native_gated import NativeGated
from umbel.engine.native_lora import NativeLora
from umbel.engine.native_part import Layout, NativePart
from umbel.engine.native_scales import NativeScales
from umbel.engine.resident import Resident
from umbel.engine.slots import Stack

Worn = tuple[int, Resident | None]
"""(place in the batch, what it wears)."""
ALONE = 32
"""Tokens of a chunk that are worth a product of their own: a view of the batch, where nothing is gathered or filled up.
Shorter chunks of like adapters share one."""
Chunk = tuple[range, Resident | None]
"""(places in the batch of a prompt's tokens, what they wear)."""
Taken = tuple[Sequence[NativePart], Sequence[Resident | None], Sequence[Chunk]]
"""(what kernels do, decoding rows and chunks without what they took)."""
_KEPT = 16
"""Steps' ways of dressing that are kept."""
_KINDS: tuple[type[NativePart], ...] = (NativeLora, NativeBottleneck, NativeGated, NativeScales)
_Laid = tuple[type[NativePart], Layout]
_Groups = dict[type[NativePart], dict[tuple[int, int], tuple[Layout, int, list[int]]]]
"""By kernel, then by stack and slot."""


class Dresser:
    """Builds a step's ``Sites``. The decoding rows' part is kept as long as the same rows wear the same slots.

    Decoding rows and prompts are grouped apart: a chunk of 128 tokens of one adapter must not fill up the groups of
    adapters that decode one token. What ``kernels`` can do needs no such groups, and is taken out first.
    """

    def __init__(self, device: torch.device, kernels: Kernels | None = None) -> None:
        self._device, self._kernels = device, kernels
        self._key: object = None
        self._kept: list[Sites] = []
        self._taken: OrderedDict[object, Taken] = OrderedDict()
        self._layouts: WeakKeyDictionary[Stack, tuple[int, _Laid | None]] = WeakKeyDictionary()

    def dress(self, decode: Sequence[Resident | None], chunks: Sequence[Chunk], batch: int) -> Sites:
        """Row i of the batch wears ``decode[i]``; a chunk says for itself which places it means."""
        native, decode, chunks = self._native(decode, chunks)
        key = batch, _places(decode)
        if key != self._key:
            acting = [(place, worn) for place, worn in enumerate(decode) if worn is not None and _in_answers(worn)]
            self._key, self._kept = key, self.parts(acting, batch)
        parts = [*native, *self._kept, *self._chunks(chunks, batch)]
        return Composite(parts) if parts else BARE

    def _native(self, decode: Sequence[Resident | None], chunks: Sequence[Chunk]) -> Taken:
        """Kept where no prompt wears anything and the same rows wear the same slots, of a few steps: rows that guess
        are as many in one step and as many in another."""
        if self._kernels is None:
            return [], decode, chunks
        key = None if chunks else _places(decode)
        if key is None or (taken := self._taken.get(key)) is None:
            taken = self._split(decode, chunks)
            self._keep(key, taken)
        return taken

    def by_kernels(self, decode: Sequence[Resident | None], chunks: Sequence[Chunk]) -> Sequence[NativePart]:
        """What kernels do for such rows, of parts that nobody else has."""
        return self._split(decode, chunks)[0]

    def _split(self, decode: Sequence[Resident | None], chunks: Sequence[Chunk]) -> Taken:
        if self._kernels is None:
            return [], decode, chunks
        groups: _Groups = {}
        left = [None if self._take(groups, (place,), worn) else worn for place, worn in enumerate(decode)]
        unread = [(places, worn) for places, worn in chunks if not self._take(groups, places, worn)]
        return [kind(self._kernels, list(own.values())) for kind, own in groups.items()], left, unread

    def _keep(self, key: object, taken: Taken) -> None:
        """None of those that hold adapters by themselves but the last."""
        if key is None or any(taken[1]) or any(any(left) for _, left, _ in self._taken.values()):
            self._taken.clear()
        while len(self._taken) >= _KEPT:
            self._taken.popitem(last=False)
        if key is not None:
            self._taken[key] = taken

    def _take(self, groups: _Groups, places: Iterable[int], worn: Resident | None) -> bool:
        """Adds places to the group of the slot that they wear, if it is one for the kernels."""
        if worn is None or worn.stack is None or (laid := self._layout(worn.stack)) is None:
            return False
        kind, layout = laid
        own = groups.setdefault(kind, {})
        own.setdefault((worn.stack.number, worn.slot), (layout, worn.slot, []))[2].extend(places)
        return True

    def _layout(self, stack: Stack) -> _Laid | None:
        known = self._layouts.get(stack)
        if known is None or known[0] != stack.rooms.moves:
            kind = next((kind for kind in _KINDS if kind.fits(stack)), None)
            known = self._layouts[stack] = stack.rooms.moves, None if kind is None else (kind, kind.layout(stack))
        return known[1]

    def _chunks(self, chunks: Sequence[Chunk], batch: int) -> list[Sites]:
        if not chunks:
            return []
        short = [(place, worn) for places, worn in chunks if len(places) < ALONE for place in places]
        parts = self.parts(short, batch)
        for places, worn in chunks:
            if len(places) >= ALONE:
                parts += self.parts([(place, worn) for place in places], batch)
        return parts

    def lm_head(self, wanted: Sequence[Resident | None]) -> Sites:
        """For the batch of wanted places, where some adapter acts on lm_head."""
        if not any(resident is not None and resident.adapts_lm_head for resident in wanted):
            return BARE
        worn = [(m, r) for m, r in enumerate(wanted) if r is not None and r.adapts_lm_head]
        return Composite(self.parts(worn, max(2, len(wanted))))

    def parts(self, worn: Sequence[Worn], batch: int) -> list[Sites]:
        rows: dict[Stack, tuple[list[int], list[int]]] = {}
        for place, resident in worn:
            if resident is not None and resident.stack is not None and resident.stack.acts:
                at, slots = rows.setdefault(resident.stack, ([], []))
                at.append(place)
                slots.append(resident.slot)
        return [
            batch_of(stack.method, stack.tensors, laid, stack.shape)
            for stack, (at, slots) in rows.items()
            for laid in plan_rows(at, slots, batch=batch, device=self._device)
        ]


def reads_anywhere(kernels: Kernels | None, stack: Stack) -> bool:
    """Whether slots of this stack need not lie side by side: a kernel finds each by its address."""
    return kernels is not None and any(kind.fits(stack) for kind in _KINDS)


def answers_by_kernels(kernels: Kernels | None, worn: Resident | None) -> bool:
    """Whether no adapter acts on a row's answer but by kernels, so that its bits are its own on any processor."""
    if worn is None or worn.stack is None:
        return True
    return not worn.adapts_lm_head and (not _in_answers(worn) or reads_anywhere(kernels, worn.stack))


def _in_answers(worn: Resident) -> bool:
    return worn.stack is not None and worn.stack.method.batch.in_answers


def _places(decode: Sequence[Resident | None]) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_place(resident) for resident in decode)


def _place(resident: Resident | None) -> tuple[int, int, int] | None:
    """Changes with what the slot holds and with where it lies."""
    if resident is None or resident.stack is None:
        return None
    return resident.stack.version, resident.stack.rooms.moves, resident.slot
