"""What the server measures of every experiment by itself, written behind the answers so that none waits for it."""

import asyncio
import logging
from collections import deque

from anyio import to_thread

from umbel.core.errors import UmbelError
from umbel.registry import Registry
from umbel.registry.outcomes import Outcome
from umbel.server.enrolling import Caller

log = logging.getLogger("umbel.server")

_MOST_WAITING = 10_000
_BATCH = 256


class Guardrails:
    """One writer at a time, all that waits in one transaction. What cannot be written is dropped, and said so: it is
    a guardrail's measurement, while exposures, which decide who counts, are never dropped."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._waiting: deque[Outcome] = deque(maxlen=_MOST_WAITING)
        self._writing: asyncio.Task[None] | None = None

    def note(self, caller: Caller | None, status: int) -> None:
        """A request ended."""
        if caller is None or caller.enrolment is None:
            return
        self._waiting.extend(caller.enrolment.outcomes(status))
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())

    async def flush(self) -> None:
        """Returns when nothing waits."""
        if self._writing is not None and not self._writing.done():
            await self._writing

    async def _write(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await to_thread.run_sync(self.registry.experiments.outcomes, batch)
            except UmbelError as error:
                log.warning("%d guardrail measurements were not kept: %s", len(batch), error.code)
