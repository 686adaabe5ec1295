"""What the kernels of adapters share: groups of rows that wear one slot, as a table of pointers for each call.

A table is an array of the C file's ``Group``, whose members all have eight bytes: [places, groups, fields] int64. A
place is a layer, or a site of one. Pointers are to where the bank keeps the weights; nothing is copied.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umbel.adapters.method import Key
from umbel.adapters.sites import Sites
from umbel.backbone.decoder import Decoder
from umbel.backbone.native import Kernels
from umbel.core.shape import BackboneShape
from umbel.engine.slots import Stack


class Record:
    """``Group`` of a C file at each place: its value for slot i is ``base + i * step``, both [places, fields]."""

    def __init__(self, fields: Sequence[str], places: int) -> None:
        self.fields = tuple(fields)
        self.base, self.step = (np.zeros((places, len(fields)), np.int64) for _ in range(2))

    def put(self, place: int, **values: int) -> None:
        """The same for all slots."""
        for name, value in values.items():
            self.base[place, self.fields.index(name)] = value

    def point(self, place: int, field: str, tensor: Tensor | None, offset: int = 0) -> None:
        """To each slot's part of a stack's tensor, ``offset`` bytes into it; None leaves NULL."""
        if tensor is not None:
            assert tensor[0].is_contiguous()
            at = self.fields.index(field)
            self.base[place, at] = tensor.data_ptr() + offset
            self.step[place, at] = tensor.stride(0) * tensor.element_size()


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where a stack's weights lie, as long as it is not laid out anew."""

    record: Record
    most: int
    """Of what the kernel needs room for in each row: ranks, or keys."""
    shape: BackboneShape


Group = tuple[Layout, int, Sequence[int]]
"""(where the stack lies, a slot of it, places of the batch that wear it)."""


Call = tuple[int, int]
"""(address of a function of the kernels, address of what it is told)."""
Calls = dict[tuple[int, str], Call]
"""By layer, and by the name of what they follow: a site, what goes into it (``qkv.in``), ``attend`` or ``mlp``."""


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What a tape's calls read and write, [rows, features] each."""

    x: Tensor
    """The residual stream."""
    h: Tensor
    """A block's input."""
    qkv: Tensor
    context: Tensor
    out: Tensor
    """A block's output."""
    gate_up: Tensor
    act: Tensor
    linears: Tensor
    """What they need beside their rows, one after another."""
    threads: int

    @classmethod
    def of(cls, shape: BackboneShape, rows: int, kernels: Kernels) -> "Room":
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        widths = {
            "x": shape.hidden, "h": shape.hidden, "qkv": queries + 2 * keys, "context": queries, "out": shape.hidden,
            "gate_up": 2 * shape.intermediate, "act": shape.intermediate,
        }  # fmt: skip
        made = {name: torch.empty(rows, width, dtype=torch.bfloat16) for name, width in widths.items()}
        most = max(shape.hidden, queries, shape.intermediate)
        linears = kernels.linear_room(rows, most, codes=True)
        return cls(linears=linears, threads=torch.get_num_threads(), **made)

    def of_site(self, site: str) -> tuple[Tensor, Tensor]:
        """What the site's linear reads, and what it writes."""
        return {
            "qkv": (self.h, self.qkv),
            "o": (self.context, self.out),
            "gate_up": (self.h, self.gate_up),
            "down": (self.act, self.out),
        }[site]


class NativePart(Sites):
    """One kernel's adapters in one batch, of any stacks that ``fits`` says yes to."""

    acts: str
    """The field of ``Group`` that is 0 at places where an adapter does nothing."""

    @classmethod
    def fits(cls, stack: Stack) -> bool:
        """Whether all that the stack's adapters do in a layer is what the kernel does, in its dtypes."""
        raise NotImplementedError

    @classmethod
    def layout(cls, stack: Stack) -> Layout:
        raise NotImplementedError

    def __init__(self, kernels: Kernels, groups: Sequence[Group]) -> None:
        self._kernels, self._threads, self._count = kernels, torch.get_num_threads(), len(groups)
        self._shape, self._most = groups[0][0].shape, max(layout.most for layout, _, _ in groups)
        self._rows = torch.tensor([row for _, _, places in groups for row in places], dtype=torch.int32)
        self._table = _table(groups)
        acts = groups[0][0].record.fields.index(self.acts)
        self._acting: list[bool] = np.any(self._table[:, :, acts] != 0, axis=1).tolist()
        self._base, self._bytes = int(self._table.ctypes.data), int(self._table[0].nbytes)

    def calls(self, room: Room, decoder: Decoder, layers: range) -> Calls:
        """The same as the methods of ``Sites`` do in these layers, for a tape. What the calls are told lives as long as
        this part, or until it is asked again."""
        raise NotImplementedError

    def _listed(self, function: str, rows: Mapping[tuple[int, str], Sequence[int]]) -> Calls:
        """Calls of one function, each with the members of its structure, whose types all have eight bytes."""
        told = self._told_tape = np.array(list(rows.values()), np.int64)
        run, base, step = address(self._kernels, function), told.ctypes.data, told.strides[0]
        return {place: (run, base + i * step) for i, place in enumerate(rows)}

    def _at(self, place: int) -> int:
        """Address of the groups of a place."""
        return self._base + place * self._bytes


def numbers(values: Sequence[int]) -> "array[int]":
    """int64 in memory, for kernels: made in a tenth of a tensor's time."""
    return array("q", values)


def at(values: "array[int] | array[float]") -> int:
    """Where it lies, as long as it is held."""
    return values.buffer_info()[0]


def address(kernels: Kernels, name: str) -> int:
    """Of a function that a tape may hold."""
    found = ctypes.cast(getattr(kernels.library, name), ctypes.c_void_p).value
    assert found is not None
    return found


def _table(groups: Sequence[Group]) -> np.ndarray:
    """Fields ``first`` and ``count`` are where a group's rows begin among all, and how many they are."""
    record = groups[0][0].record
    table = np.empty((len(record.base), len(groups), len(record.fields)), np.int64)
    at, first = [record.fields.index(name) for name in ("first", "count")], 0
    for i, (layout, slot, places) in enumerate(groups):
        np.multiply(layout.record.step, slot, out=table[:, i])
        table[:, i] += layout.record.base
        table[:, i, at] = first, len(places)
        first += len(places)
    return table


def dtypes_are(stack: Stack, wide: Sequence[str] = ()) -> bool:
    """bf16, and fp32 where the last part of the name is one of ``wide``."""

    def wanted(key: Key) -> torch.dtype:
        return torch.float32 if key[1].rsplit(".", 1)[-1] in wide else torch.bfloat16

    return all(tensor.dtype == wanted(key) for key, tensor in stack.tensors.items())
