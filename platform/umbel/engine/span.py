"""Where a chunk of a prompt stands: in its row's slot of the cache, and in the flat step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one row in a flat step."""

    slot: int
    start: int
    """Position of the first."""
    count: int
    at: int
    """Place of the first in the batch."""
