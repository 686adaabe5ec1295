"""Named places where a test may kill the process or make it fail, as SQLite and FoundationDB test themselves.

``UMBEL_FAILPOINT=publish.blob_linked`` ends the process there as ``kill -9`` would; ``publish.blob_linked:2`` the
second time that it comes by. ``failing(point, error)`` raises inside one thread. Unarmed, a point costs a look-up.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum

VARIABLE = "UMBEL_FAILPOINT"
KILLED = 137
"""Exit status of a process that was killed by signal 9."""


class Point(StrEnum):
    """Every step of a publish, in order, then those of gc."""

    PUBLISH_BEGUN = "publish.begun"
    PUBLISH_STAGING_MADE = "publish.staging_made"
    PUBLISH_FILE_WRITTEN = "publish.file_written"
    PUBLISH_STAGED = "publish.staged"
    PUBLISH_VALIDATED = "publish.validated"
    PUBLISH_HASHED = "publish.hashed"
    PUBLISH_BLOB_LINKED = "publish.blob_linked"
    PUBLISH_BLOB_SYNCED = "publish.blob_synced"
    PUBLISH_STORED = "publish.stored"
    PUBLISH_ADAPTER_ROW = "publish.adapter_row"
    PUBLISH_BLOB_ROWS = "publish.blob_rows"
    PUBLISH_VERSION_ROW = "publish.version_row"
    PUBLISH_CHAMPION = "publish.champion"
    PUBLISH_BEFORE_COMMIT = "publish.before_commit"
    PUBLISH_COMMITTED = "publish.committed"
    PUBLISH_DONE = "publish.done"
    GC_UNLINKED = "gc.unlinked"
    GC_BEFORE_COMMIT = "gc.before_commit"
    GC_COMMITTED = "gc.committed"


_armed: ContextVar[tuple[Point, BaseException] | None] = ContextVar("_armed", default=None)
_passed: Counter[str] = Counter()


def reach(point: Point) -> None:
    """Says that ``point`` is reached; returns unless somebody armed it."""
    _kill_if_asked(point)
    armed = _armed.get()
    if armed and armed[0] is point:
        raise armed[1]


@contextmanager
def failing(point: Point, error: BaseException) -> Iterator[None]:
    """While open, ``point`` raises ``error`` in this thread."""
    token = _armed.set((point, error))
    try:
        yield
    finally:
        _armed.reset(token)


def _kill_if_asked(point: Point) -> None:
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if wanted != point:
        return
    _passed[point] += 1
    if _passed[point] == int(count or 1):
        os._exit(KILLED)  # no finally, no atexit, no flush: nothing is tidied up
