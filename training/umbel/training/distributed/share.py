"""What each process does of a step: rows are dealt out by their index, so N processes do one process's work.

Everybody knows everybody's rows, so nothing is sent to agree on this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel.training.distributed.group import Group
from umbel.training.passes import Packing, Seat, pack


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One forward pass. A ghost is run for the mates' sake, and its loss weighs nothing."""

    seats: list[Seat]
    ghost: bool = False


def share(
    seats: Sequence[Seat], packing: Packing, group: Group, most: Mapping[int, int | None] | None = None
) -> list[Pass]:
    """This process's passes, as many as any other's: sharded weights are gathered in each, by all at once."""
    packed = [pack(seats[rank :: group.size], packing, most) for rank in range(group.size)]
    ghosts = max(map(len, packed)) - len(packed[group.rank])
    return [Pass(each) for each in packed[group.rank]] + [Pass([seats[0]], ghost=True)] * ghosts
