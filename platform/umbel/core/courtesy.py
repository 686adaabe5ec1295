"""Work in the background lets those who answer go first.

Where a step takes all cores, another thread beside it costs more than its own time: the step's threads wait for the one
whose core it shares, and for the interpreter. So work of many milliseconds calls ``give_way`` between pieces of about
one; on a thread that nobody asked to wait that does nothing.
"""

import threading
from collections.abc import Callable, Iterator

PIECE = 1 << 20
"""Bytes that are read, hashed or written without giving way: half a millisecond."""


class _Here(threading.local):
    wait: Callable[[], None] | None = None


_here = _Here()


def give_way_by(wait: Callable[[], None]) -> None:
    """The calling thread calls ``wait`` between pieces from now on; it returns when the thread may go on."""
    _here.wait = wait


def give_way() -> None:
    """Between two pieces of work."""
    if _here.wait is not None:
        _here.wait()


def pieces(whole: memoryview) -> Iterator[memoryview]:
    """Its bytes, ``PIECE`` at a time; gives way behind each."""
    for start in range(0, len(whole), PIECE):
        yield whole[start : start + PIECE]
        give_way()
