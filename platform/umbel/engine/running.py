"""The running rows, compact in the cache's slots: decoding ones first, then those whose prompt is being read.

Each holds places of the cache for its prompt and a little more, and is promised more as it writes. When the places run
out, the row that came last makes room: its keys and values are saved as they are, and put back before anybody new
is admitted. What all could come to use in the worst case is bounded at admission, by ``places`` and what may be saved.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from umbel.engine.guessing import LEAST, TOGETHER
from umbel.engine.kv import KVCache
from umbel.engine.prefixes import Prefixes
from umbel.engine.row import Row
from umbel.engine.span import Span

LEAST_CHUNK = 16
"""Prompt tokens that a step takes even when decoding rows use up its budget."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step computes: a token of each decoding row, then chunks of prompts."""

    decode: list[Row]
    """Side by side those that wear the same adapter, so that a group of the batch is a view and nothing is gathered. A
    row that guesses stands here again for each of its guesses, behind itself."""
    chunks: list[tuple[Row, Span]]
    ahead: list[int]
    """For each of ``decode`` 0, or the number of the guess."""

    @property
    def tokens(self) -> int:
        return len(self.decode) + sum(span.count for _, span in self.chunks)


def _worn(row: Row) -> tuple[int, int]:
    """Order of adapters: the bare backbone, then stacks and their slots."""
    resident = row.resident
    return (-1, 0) if resident is None or resident.stack is None else (resident.stack.number, resident.slot)


class Running:
    """Keeps ``rows[i].slot == i`` and the first ``decoding`` rows past their prompt, moving keys and values along.

    ``places`` bounds what running rows and kept beginnings of prompts hold together; ``spare`` what may be saved
    beside them, which can be passed by less than one row. A row that ``may_guess`` guesses at most ``guesses`` tokens.
    """

    def __init__(
        self,
        cache: KVCache,
        prefixes: Prefixes,
        *,
        places: int,
        spare: int,
        guesses: int = 0,
        may_guess: Callable[[Row], bool] = lambda _: True,
    ) -> None:
        self.cache, self.prefixes = cache, prefixes
        self.places, self.spare = places, spare
        self.guesses, self._may_guess = guesses, may_guess
        self.rows: list[Row] = []
        self.decoding = 0
        self.preempted: list[Row] = []
        """Rows that made room, in order of submission."""
        self.preemptions = 0
        self.reserved = 0
        """Places that admitted rows may come to use."""
        self.held = 0
        """Places promised to running rows."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def saved(self) -> int:
        """Places of rows that made room."""
        return sum(row.used for row in self.preempted)

    def has_room(self, row: Row) -> bool:
        """Whether a new row fits, now and at its end."""
        worst = self.reserved + row.reserved <= self.places + self.spare
        return worst and self.held + row.hold <= self.places

    def add(self, row: Row) -> None:
        self.reserved += row.reserved
        self._enter(row)

    def remove(self, row: Row, *, tainted: bool = False) -> None:
        """Also one that made room. ``tainted`` rows may have left NaN in the cache."""
        self.reserved -= row.reserved
        if row.saved is not None:
            self.preempted.remove(row)
            row.saved = None
            return
        if tainted:
            self.cache.clear(row.slot)
        self._exit(row)

    def hand_over(self, row: Row) -> None:
        """A row leaves while others ride along: one of them takes its slot, or what was saved of it, and reads on."""
        heir, *others = row.riders
        heir.leader, heir.riders, row.riders = None, others, []
        for other in others:
            other.leader = heir
        heir.done, heir.reserved, heir.pooled = row.done, row.reserved, row.pooled
        heir.sound, heir.held, row.held = row.sound, row.held, 0
        heir.slot, row.slot = row.slot, -1
        if row.saved is None:
            self.rows[heir.slot] = heir
        else:
            heir.saved, row.saved = row.saved, None
            self.preempted[self.preempted.index(row)] = heir

    def graduate(self, row: Row) -> None:
        """Its prompt is read: it goes to the end of the decoding rows."""
        other = self.rows[self.decoding]
        if other is not row:
            self.cache.swap(row.slot, other.slot, max(row.used, other.used))
            row.slot, other.slot = other.slot, row.slot
            self.rows[row.slot], self.rows[other.slot] = row, other
        self.decoding += 1

    def resume(self, most: int) -> None:
        """Puts rows that made room back, the oldest first, while they fit among ``most`` rows."""
        while self.preempted and len(self.rows) < most and self.held + self.preempted[0].hold <= self.places:
            row = self.preempted.pop(0)
            self._enter(row)
            self.cache.load(row.slot, 0, row.saved)
            row.saved = None
            if not row.prefilling:
                self.graduate(row)

    def grow(self) -> None:
        """Promises places to decoding rows that used up theirs, the oldest first; the newest rows make room."""
        short = [row for row in self.rows[: self.decoding] if row.used >= row.held]
        for row in sorted(short, key=attrgetter("number")):
            while row.saved is None and self.held + row.hold - row.held > self.places:
                self._preempt(max(self.rows, key=attrgetter("number")))
            if row.saved is None:
                self._promise(row)

    def plan(self, budget: int, order: Callable[[Row], tuple[int, int]]) -> Plan:
        """``budget`` tokens, decoding rows first, then prompts in ``order``. Call ``grow`` first."""
        left = max(budget - self.decoding, LEAST_CHUNK)
        at, chunks = self.decoding, []
        for row in sorted(self.rows[self.decoding :], key=order):
            if left == 0:
                break
            if not row.done:
                self.prefixes.fill(row)
            count = min(left, row.prompt_end - row.done)
            chunks.append((row, Span(row.slot, row.used, count, at)))
            left, at = left - count, at + count
        decode = sorted(self.rows[: self.decoding], key=_worn)
        if self.guesses and not chunks and decode:
            return self._with_guesses(decode)
        return Plan(decode, chunks, [0] * len(decode))

    def _with_guesses(self, decode: list[Row]) -> Plan:
        """As many of each row as leave the step about as long as it is."""
        most = min(self.guesses, TOGETHER // len(decode) - 1)
        if most < LEAST:
            return Plan(decode, [], [0] * len(decode))
        places = [
            (row, ahead) for row in decode for ahead in range(1 + (row.guess(most) if self._may_guess(row) else 0))
        ]
        return Plan([row for row, _ in places], [], [ahead for _, ahead in places])

    def _preempt(self, row: Row) -> None:
        row.saved = self.cache.save(row.slot, 0, row.used)
        self._exit(row)
        insort(self.preempted, row, key=attrgetter("number"))
        self.preemptions += 1

    def _enter(self, row: Row) -> None:
        row.slot = len(self.rows)
        self.rows.append(row)
        self._promise(row)

    def _promise(self, row: Row) -> None:
        self.held += row.hold - row.held
        row.held = row.hold
        self.prefixes.trim(self.places - self.held)

    def _exit(self, row: Row) -> None:
        hole = row.slot
        if hole < self.decoding:
            self.decoding -= 1
            hole = self._fill(hole, self.decoding)
        self._fill(hole, len(self.rows) - 1)
        self.rows.pop()
        self.held -= row.held
        row.held, row.slot = 0, -1
        self.prefixes.trim(self.places - self.held)
        self.cache.free(len(self.rows))

    def _fill(self, hole: int, source: int) -> int:
        """Moves the row of slot ``source`` into the hole; returns the new hole."""
        if source != hole:
            row = self.rows[source]
            self.cache.move(source, hole, row.written)
            self.rows[hole], row.slot = row, hole
        return source
