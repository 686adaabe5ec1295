"""Packing with isolation: several short rows share one sequence of a pass (a *line*), and none feels its neighbours.

Positions start anew with each row, attention stays inside it, and a prefix is seen by each row of its line, so every
method and output head gives what it gives on padded rows. A line holds rows of one adapter.

Shape letters here:  B rows   P lines   T places of a line   L places of the longest row
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umbel.adapters.dropout import token_key
from umbel.training.passes import Seat, lines_of


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Where each row of a pass lies."""

    of: list[int]
    """The line of each row."""
    starts: list[int]
    """Each row's first place, of the P * T."""
    wearers: list[int]
    """Which adapter each line wears."""
    places: int
    """T."""
    positions: Tensor
    """[P,T] (or [1,T]) places counted from the row's own beginning."""
    rows: Tensor | None = None
    """[P,T] the row at each place, -1 on padding; None where every line is one row."""
    gather: Tensor | None = None
    """[B,L] the places of each row (of the P * T), its last one repeated."""

    def split(self, hidden: Tensor) -> Tensor:
        """[P,T,H] -> [B,L,H]: each row on its own again."""
        return hidden if self.gather is None else hidden.flatten(0, 1)[self.gather]

    def keys(self, keys: Tensor | None) -> Tensor | None:
        """Dropout keys [B] of rows -> of lines: the same, or [P,T] keys of single places, as each row alone has."""
        if keys is None or self.rows is None:
            return keys
        own = keys[self.rows.clamp(min=0)].flatten()
        return token_key(own, self.positions.flatten()).view_as(self.rows)


def lie(seats: Sequence[Seat], device: torch.device) -> Lines:
    """The lines of a pass: one per row, or as ``pack`` has joined them."""
    lines = lines_of(seats)
    places = max(sum(seat.length for seat in line) for line in lines)
    wearers = [line[0].trainee for line in lines]
    if len(lines) == len(seats):
        starts = [row * places for row in range(len(seats))]
        return Lines(list(range(len(seats))), starts, wearers, places, torch.arange(places, device=device)[None])
    of: list[int] = []
    starts = []
    rows = np.full((len(lines), places), -1, dtype=np.int64)
    positions = np.zeros((len(lines), places), dtype=np.int64)
    for number, line in enumerate(lines):
        at = 0
        for seat in line:
            rows[number, at : at + seat.length] = len(of)
            positions[number, at : at + seat.length] = np.arange(seat.length)
            of.append(number)
            starts.append(number * places + at)
            at += seat.length
    lengths, first = np.array([seat.length for seat in seats]), np.array(starts)
    gather = first[:, None] + np.minimum(np.arange(lengths.max())[None, :], lengths[:, None] - 1)
    return Lines(
        of, starts, wearers, places,
        torch.from_numpy(positions).to(device), torch.from_numpy(rows).to(device), torch.from_numpy(gather).to(device),
    )  # fmt: skip
