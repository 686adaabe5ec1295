"""The thread that steps and the one that loads take turns where both want the same cores.

While a step runs the loader waits between its pieces (``core.courtesy``). Whoever had to wait gets a turn before the
next step, a part of what the last ones took: a load lasts as long as beside the steps, and no step lasts longer than
itself and that turn.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE, LEAST = 0.4, 0.003
"""Of a step's time, between it and the next one; and at least so many seconds."""


class Turns:
    """``stepping`` and ``owed`` belong to the thread that steps, ``wait`` to the one that loads. Where they have cores
    of their own (``apart``) nobody waits."""

    def __init__(self, *, apart: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self._apart, self._clock = apart, clock
        self._changed = threading.Condition()
        self._steps = self._waits = self._waited = False
        self._seconds = self._before = 0.0

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A step, during which the other thread does not begin a piece."""
        if self._apart:
            yield
            return
        began, self._steps = self._clock(), True
        try:
            yield
        finally:
            self._before, self._seconds = self._seconds, self._clock() - began
            with self._changed:
                self._steps, self._waited = False, self._waits
                self._changed.notify_all()

    def owed(self) -> float:
        """Seconds for the other thread's turn, once after each step that it waited for: a part of the shorter one of
        the last two, since one that read a prompt says nothing of the next."""
        waited, self._waited = self._waited, False
        return max(LEAST, SHARE * min(self._seconds, self._before or self._seconds)) if waited else 0.0

    def wait(self) -> None:
        """Until no step runs."""
        if not self._steps:
            return
        with self._changed:
            self._waits = True
            self._changed.wait_for(lambda: not self._steps)
            self._waits = False
