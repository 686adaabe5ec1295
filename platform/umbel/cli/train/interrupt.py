"""Ctrl-C and SIGTERM: the first saves and stops after the step that runs, a second Ctrl-C stops at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from umbel.cli.console import write_line


class Stopping:
    """Asked by the loop before every step."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> str | None:
        return self.reason


@contextmanager
def stopping(*, told: bool = True) -> Iterator[Stopping]:
    """Listens while the block runs; a signal is answered in words where ``told``.

    In another thread than the main one signals cannot be heard, and are not.
    """
    asked = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, frame: FrameType | None) -> None:
        asked.reason = "interrupted"
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if told:
            write_line(sys.stderr, "\nsaving and stopping after this step; Ctrl-C again stops at once")

    for number in before:
        signal.signal(number, heard)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
