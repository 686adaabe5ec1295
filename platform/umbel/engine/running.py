"""The running rows, compact in the cache's slots: decoding ones first, then those whose prompt is being read."""

from dataclasses import dataclass

from umbel.engine.attention import Span
from umbel.engine.kv import KVCache
from umbel.engine.row import Row

LEAST_CHUNK = 16
"""Prompt tokens that a step takes even when decoding rows use up its budget."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step computes: a token of each decoding row, then chunks of prompts."""

    decode: list[Row]
    """Side by side those that wear the same adapter, so that a group of the batch is a view and nothing is gathered."""
    chunks: list[tuple[Row, Span]]

    @property
    def tokens(self) -> int:
        return len(self.decode) + sum(span.count for _, span in self.chunks)


def _worn(row: Row) -> tuple[int, int]:
    """Order of adapters: the bare backbone, then stacks and their slots."""
    resident = row.resident
    return (-1, 0) if resident is None or resident.stack is None else (resident.stack.number, resident.slot)


class Running:
    """Keeps ``rows[i].slot == i`` and the first ``decoding`` rows past their prompt, moving keys and values along."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.rows: list[Row] = []
        self.decoding = 0
        self.reserved = 0
        """Places of the cache promised to rows."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Row) -> None:
        row.slot = len(self.rows)
        self.rows.append(row)
        self.reserved += row.reserved

    def remove(self, row: Row, *, tainted: bool = False) -> None:
        """``tainted`` rows may have left NaN in the cache."""
        if tainted:
            self.cache.clear(row.slot)
        hole = row.slot
        if hole < self.decoding:
            self.decoding -= 1
            hole = self._fill(hole, self.decoding)
        hole = self._fill(hole, len(self.rows) - 1)
        self.rows.pop()
        self.reserved -= row.reserved
        row.slot = -1
        self.cache.free(len(self.rows))

    def hand_over(self, row: Row) -> None:
        """A row leaves while others ride along: one of them takes its slot and reads on."""
        heir, *others = row.riders
        heir.leader, heir.riders, row.riders = None, others, []
        for other in others:
            other.leader = heir
        heir.done, heir.reserved, heir.pooled = row.done, row.reserved, row.pooled
        heir.slot, row.slot = row.slot, -1
        self.rows[heir.slot] = heir

    def graduate(self, row: Row) -> None:
        """Its prompt is read: it goes to the end of the decoding rows."""
        other = self.rows[self.decoding]
        if other is not row:
            self.cache.swap(row.slot, other.slot, max(row.used, other.used))
            row.slot, other.slot = other.slot, row.slot
            self.rows[row.slot], self.rows[other.slot] = row, other
        self.decoding += 1

    def plan(self, budget: int) -> Plan:
        """``budget`` tokens, decoding rows first; prompts in the order of their slots."""
        left = max(budget - self.decoding, LEAST_CHUNK)
        at, chunks = self.decoding, []
        for row in self.rows[self.decoding :]:
            count = min(left, row.prompt_end - row.done)
            if count == 0:
                break
            chunks.append((row, Span(row.slot, row.used, count, at)))
            left, at = left - count, at + count
        return Plan(sorted(self.rows[: self.decoding], key=_worn), chunks)

    def _fill(self, hole: int, source: int) -> int:
        """Moves the row of slot ``source`` into the hole; returns the new hole."""
        if source != hole:
            row = self.rows[source]
            self.cache.move(source, hole, row.used)
            self.rows[hole], row.slot = row, hole
        return source
