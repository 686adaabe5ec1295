"""Data larger than memory: items lie one behind the other in a file, and each is made when it is asked for.

What is held is eight bytes for each item. The file has no name and lies in the home's cache: it is gone with the
process, however that ends.
"""

import json
import os
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np

from umbel.core.errors import Unavailable
from umbel.training.data.encode import Example
from umbel.training.data.rows import Row, row_of

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_TOGETHER = 1 << 20
"""Bytes that are written at a time."""


class _File:
    """Open as long as one sequence over it lives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)

    def read(self, size: int, start: int) -> bytes:
        return os.pread(self.number, size, start)


class Spool(Sequence[T], Generic[T]):
    """A sequence in a file; a slice, or a choice, is another one over the same file."""

    def __init__(self, file: _File, starts: "array[int]", unpack: Callable[[bytes], T]) -> None:
        self._file, self._starts, self._unpack = file, starts, unpack

    @classmethod
    def of(
        cls, items: Iterable[T], folder: Path, pack: Callable[[T], bytes], unpack: Callable[[bytes], T]
    ) -> "Spool[T]":
        """Raises Unavailable (``no_space``) where the disk is full."""
        starts, at = array("q"), 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder, buffering=_TOGETHER) as file:
                for packed in map(pack, items):
                    starts.append(at)
                    at += file.write(_LENGTH.pack(len(packed))) + file.write(packed)
                file.flush()
                return cls(_File(os.dup(file.fileno())), starts, unpack)
        except OSError as error:
            raise Unavailable(
                f"{folder}: {error.strerror}; rows of large files are laid out there.",
                code="no_space",
                hint="make room, or move the home: UMBEL_HOME=...",
            ) from None

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Spool[T]": ...
    def __getitem__(self, place: int | slice) -> "T | Spool[T]":
        if isinstance(place, slice):
            return Spool(self._file, self._starts[place], self._unpack)
        start = self._starts[place]
        (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size, start))
        return self._unpack(self._file.read(length, start + _LENGTH.size))

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))

    def choose(self, places: Iterable[int]) -> "Spool[T]":
        """Those at these places, in their order."""
        return Spool(self._file, array("q", (self._starts[place] for place in places)), self._unpack)


def spool_rows(rows: Iterable[Row], folder: Path) -> Spool[Row]:
    return Spool.of(rows, folder, _pack_row, _unpack_row)


def spool_examples(examples: Iterable[Example], folder: Path) -> Spool[Example]:
    return Spool.of(examples, folder, _pack_example, _unpack_example)


def _pack_row(row: Row) -> bytes:
    return json.dumps([type(row).__name__, asdict(row)], ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpack_row(packed: bytes) -> Row:
    kind, fields = json.loads(packed.decode("utf-8", "surrogatepass"))
    return row_of(kind, {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _pack_example(example: Example) -> bytes:
    """JSON of what is small, then the tokens of each of its texts, and which of them are spoken."""
    texts = example.sequences
    head = json.dumps(
        [[t.index, len(t.ids), t.spoken is not None, t.target, t.words, t.weight] for t in texts]
    ).encode()
    bodies = (t.ids.tobytes() + (b"" if t.spoken is None else t.spoken.tobytes()) for t in texts)
    return b"".join([_LENGTH.pack(len(head)), head, *bodies])


def _unpack_example(packed: bytes) -> Example:
    (size,) = _LENGTH.unpack_from(packed)
    at, texts = _LENGTH.size + size, []
    for index, length, speaks, target, words, weight in json.loads(packed[_LENGTH.size : at]):
        ids = np.frombuffer(packed, np.int32, length, at)
        at += ids.nbytes
        spoken = np.frombuffer(packed, np.bool_, length, at) if speaks else None
        at += length if speaks else 0
        texts.append(Example(index, ids, spoken, tuple(target), tuple(words), weight))
    first, *mates = texts
    return replace(first, mates=tuple(mates))
