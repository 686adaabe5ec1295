"""Requests that wait: one queue for each adapter, served by who has received least (Sheng et al. 2023, VTC).

Every adapter has a counter of the tokens it was served, prompt tokens counting once and generated ones twice. The
adapter with the lowest comes next, so a busy tenant cannot starve a quiet one. One that comes back after a pause
starts at the lowest counter of the others: idle time is not saved up.
"""

from collections import deque
from collections.abc import Iterator

from umbel.engine.row import Row

PROMPT_COST = 1
TOKEN_COST = 2


class Waiting:
    """Rows in order of submission within an adapter, in order of fairness between adapters."""

    def __init__(self) -> None:
        self._queues: dict[str | None, deque[Row]] = {}
        self._served: dict[str | None, int] = {}
        self._running: dict[str | None, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return (row for queue in self._queues.values() for row in queue)

    def push(self, row: Row) -> None:
        key = row.adapter
        if key not in self._queues:
            self._lift(key)
            self._queues[key] = deque()
        self._queues[key].append(row)
        self._count += 1

    def remove(self, row: Row) -> None:
        """Raises ValueError if the row does not wait."""
        queue = self._queues[row.adapter]
        queue.remove(row)
        row.mates.remove(row)
        self._count -= 1
        if not queue:
            del self._queues[row.adapter]

    def heads(self) -> list[Row]:
        """The oldest row of each adapter, the least served adapter first; equals in order of submission."""
        return sorted((queue[0] for queue in self._queues.values()), key=self.served)

    def count(self, adapter: str | None) -> int:
        """How many wait for it; may be asked from any thread."""
        return len(self._queues.get(adapter, ()))

    @property
    def adapters(self) -> int:
        """How many adapters are waited for; may be asked from any thread."""
        return len(self._queues)

    def served(self, row: Row) -> tuple[int, int]:
        """Sorts rows by who has received least; equals in order of submission."""
        return self._served[row.adapter], row.number

    def of(self, adapter: str) -> list[Row]:
        return list(self._queues.get(adapter, ()))

    def started(self, row: Row) -> None:
        """It left the queue and runs. One that rides along pays nothing: the prompt is read anyway."""
        self._running[row.adapter] = self._running.get(row.adapter, 0) + 1
        if row.leader is None:
            self.charge(row.adapter, PROMPT_COST * len(row.request.tokens))

    def ended(self, row: Row) -> None:
        """It runs no more. Counters of adapters with nothing to do are forgotten, so they do not pile up."""
        self._running[row.adapter] -= 1
        if not self._running[row.adapter]:
            del self._running[row.adapter]
        if not self._running and not self._queues:
            self._served.clear()

    def charge(self, adapter: str | None, tokens: int) -> None:
        self._served[adapter] = self._served.get(adapter, 0) + tokens

    def _lift(self, key: str | None) -> None:
        if key in self._running:
            return
        active = [self._served[other] for other in {*self._queues, *self._running}]
        self._served[key] = max(self._served.get(key, 0), min(active, default=0))
