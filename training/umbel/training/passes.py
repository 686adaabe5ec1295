"""Rows of many tasks, laid out as forward passes, padded or packed: that changes speed and memory, and no result.

Shape letters here:  B rows   T tokens
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from umbel.training.contrast import Contrast
from umbel.training.data.encode import Example
from umbel.training.trunk.trunk import Cut

PASS_TOKENS = 2048
"""Places of one pass, padding included: about 1.2 GB of activations on a backbone of 135M parameters."""
WASTE = 0.1
"""Most padding in a pass, as a share of its places."""
SMALL = 256
"""A pass of fewer places may have more padding: another pass would cost more than it saves."""


LINE = 256
"""Places of a sequence that rows share, where no row is longer: attention's work grows with its length."""


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """One row of a pass."""

    trainee: int
    """Which of the adapters it wears."""
    example: Example
    virtual: int = 0
    """Places reserved before the text."""
    line: int | None = None
    """Which sequence of the pass it shares with others; None where it has one of its own."""
    cut: Cut | None = None
    """Where its kept states enter; rows of one pass enter at one place."""
    contrast: Contrast | None = None
    """Embed: the texts that this one is compared with."""

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
    join: bool = False
    """Whether several short rows share one sequence (``lines``)."""


def pack(seats: Sequence[Seat], packing: Packing, most: Mapping[int, int | None] | None = None) -> list[list[Seat]]:
    """Passes that hold every seat once, each with its rows sorted by adapter.

    ``most`` is the largest number of rows of one adapter in a pass. A single row longer than ``packing.tokens`` gets
    a pass of its own.
    """
    cuts = dict.fromkeys(seat.cut for seat in seats)
    return [part for cut in cuts for part in _pack([s for s in seats if s.cut == cut], packing, most or {})]


def _pack(seats: Sequence[Seat], packing: Packing, most: Mapping[int, int | None]) -> list[list[Seat]]:
    """Passes of seats of one cut."""
    if seats[0].cut is not None and seats[0].cut.whole:  # a few numbers for each row: how long it is does not matter
        parts = (seats[start : start + packing.tokens] for start in range(0, len(seats), packing.tokens))
        return [sorted(part, key=lambda seat: seat.trainee) for part in parts]
    if packing.join and seats[0].cut is None:  # kept states are of padded rows
        return _joined(seats, packing, most)
    ordered = sorted(seats, key=lambda seat: -seat.length) if packing.bucket else list(seats)
    passes = _fill([[seat] for seat in ordered], packing, most)
    return [sorted((line[0] for line in each), key=lambda seat: seat.trainee) for each in passes]


Line = list[Seat]
"""Rows that share one sequence of a pass; one, where rows are padded."""


def _joined(seats: Sequence[Seat], packing: Packing, most: Mapping[int, int | None]) -> list[list[Seat]]:
    """Passes of lines that rows of one adapter share."""
    room = max(min(LINE, packing.tokens), *(seat.length for seat in seats))
    ordered = sorted(seats, key=lambda seat: (seat.trainee, -seat.length))
    lines = [
        line
        for trainee, own in groupby(ordered, key=lambda seat: seat.trainee)
        for line in _balanced(list(own), room, most.get(trainee))
    ]
    passes = _fill(sorted(lines, key=lambda line: -sum(seat.length for seat in line)), packing, most)
    return [
        [replace(seat, line=number) for number, line in enumerate(each) for seat in line]
        for each in (sorted(lines, key=lambda line: line[0].trainee) for lines in passes)
    ]


def _balanced(seats: Sequence[Seat], room: int, most: int | None) -> list[Line]:
    """As few lines as there is room for, about equally long: each row, longest first, goes to the shortest one."""
    number = max(-(-_length(seats) // room), -(-len(seats) // (most or len(seats))))
    lines: list[Line] = [[] for _ in range(number)]
    for seat in seats:
        min((line for line in lines if len(line) < (most or len(seats))), key=_length).append(seat)
    return lines


def _fill(lines: Sequence[Line], packing: Packing, most: Mapping[int, int | None]) -> list[list[Line]]:
    """Passes of lines, taken in their order."""
    passes: list[list[Line]] = []
    current: list[Line] = []
    for line in lines:
        if current and not _takes(current, line, packing, most):
            passes.append(current)
            current = []
        current.append(line)
    return [*passes, current] if current else passes


def _takes(current: Sequence[Line], line: Line, packing: Packing, most: Mapping[int, int | None]) -> bool:
    limit = most.get(line[0].trainee)
    if limit is not None:
        seated = Counter(seat.trainee for other in current for seat in other)[line[0].trainee]
        if seated + len(line) > limit:
            return False
    places = (len(current) + 1) * max(_length(line), *map(_length, current))
    if places > packing.tokens:
        return False
    used = _length(line) + sum(map(_length, current))
    return not packing.bucket or places <= SMALL or used >= (1 - packing.waste) * places


def _length(line: Sequence[Seat]) -> int:
    return sum(seat.length for seat in line)


def lines_of(seats: Sequence[Seat]) -> list[Line]:
    """The lines of a pass: seats of equal ``line`` lie side by side, one without a line has its own."""
    lines: list[Line] = []
    for seat in seats:
        if lines and seat.line is not None and lines[-1][0].line == seat.line:
            lines[-1].append(seat)
        else:
            lines.append([seat])
    return lines


def places(seats: Sequence[Seat]) -> int:
    """Of a pass, padding included."""
    lines = lines_of(seats)
    return len(lines) * max(map(_length, lines))


def padding(passes: Sequence[Sequence[Seat]]) -> float:
    """Share of all places that hold no token."""
    return 1 - sum(seat.length for each in passes for seat in each) / sum(map(places, passes))
