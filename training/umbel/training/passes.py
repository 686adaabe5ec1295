"""Rows of many tasks, laid out as padded forward passes. Which pass a row is in changes speed and memory, no result.

Shape letters here:  B rows   T tokens
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel.training.data.encode import Example

PASS_TOKENS = 2048
"""Places of one pass, padding included: about 1.2 GB of activations on a backbone of 135M parameters."""
WASTE = 0.1
"""Most padding in a pass, as a share of its places."""
SMALL = 256
"""A pass of fewer places may have more padding: another pass would cost more than it saves."""


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """One row of a pass."""

    trainee: int
    """Which of the adapters it wears."""
    example: Example
    virtual: int = 0
    """Places reserved before the text."""

    @property
    def length(self) -> int:
        return self.virtual + len(self.example.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How rows are laid out."""

    tokens: int = PASS_TOKENS
    waste: float = WASTE
    bucket: bool = True
    """Whether rows of like length are put together."""


def pack(seats: Sequence[Seat], packing: Packing, most: Mapping[int, int | None] | None = None) -> list[list[Seat]]:
    """Passes that hold every seat once, each with its rows sorted by adapter.

    ``most`` is the largest number of rows of one adapter in a pass. A single row longer than ``packing.tokens`` gets
    a pass of its own.
    """
    ordered = sorted(seats, key=lambda seat: -seat.length) if packing.bucket else list(seats)
    passes: list[list[Seat]] = []
    current: list[Seat] = []
    for seat in ordered:
        if current and not _takes(current, seat, packing, most or {}):
            passes.append(current)
            current = []
        current.append(seat)
    if current:
        passes.append(current)
    return [sorted(each, key=lambda seat: seat.trainee) for each in passes]


def _takes(current: Sequence[Seat], seat: Seat, packing: Packing, most: Mapping[int, int | None]) -> bool:
    limit = most.get(seat.trainee)
    if limit is not None and Counter(other.trainee for other in current)[seat.trainee] >= limit:
        return False
    places = (len(current) + 1) * max(seat.length, *(other.length for other in current))
    if places > packing.tokens:
        return False
    used = seat.length + sum(other.length for other in current)
    return not packing.bucket or places <= SMALL or used >= (1 - packing.waste) * places


def padding(passes: Sequence[Sequence[Seat]]) -> float:
    """Share of all places that hold no token."""
    places = sum(len(each) * max(seat.length for seat in each) for each in passes)
    return 1 - sum(seat.length for each in passes for seat in each) / places
