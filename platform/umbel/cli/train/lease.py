"""Who trains a run: this process says so in the registry as long as it works, and others keep their hands off.

A process that is killed falls silent: after a minute a worker takes its run over, and `umbel runs resume` does at once
where it sees that the process is gone. One that was interrupted has let go.
"""

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from umbel.core.errors import Interrupted, UmbelError

if TYPE_CHECKING:
    from umbel.registry.registry import Registry

BEAT = 10.0
"""Seconds between two signs of life."""


def owner() -> str:
    """This process, as it stands in a run's lease."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(other: str) -> bool:
    """Whether an owner is a process of this machine that lives no more."""
    host, _, number = other.rpartition(":")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def ending(registry: "Registry", runs: Sequence[str]) -> Iterator[None]:
    """Ends those of ``runs`` that the block leaves open: as failed, with the reason, where it raises, and else as
    succeeded, their versions being there. Stopped ones stay open, to be resumed."""
    from umbel.training.distributed.group import mate_gone

    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        why = str(error) if isinstance(error, UmbelError) else f"{type(error).__name__}: {error}"
        for run in () if mate_gone(error) else _open(registry, runs):
            registry.finish(run, status="failed", error=why)
        raise
    for run in _open(registry, runs):
        registry.finish(run, status="succeeded", summary=_found(registry, run))


def _open(registry: "Registry", runs: Sequence[str]) -> list[str]:
    return [run for run in runs if registry.runs.get(run).finished_at is None]


def _found(registry: "Registry", run: str) -> Mapping[str, Any] | None:
    """What training said at its last step, maybe in a process that is gone."""
    from umbel.training.runlog import TRAINED

    said = [event.data for event in registry.runs.events(run) if event.message == TRAINED]
    return said[-1] if said else None


@contextmanager
def holding(registry: "Registry", runs: Sequence[str], *, leased: str | None = None) -> Iterator[None]:
    """Leases ``runs`` while the block works; raises Conflict (``run_taken``) where a living process has one of them.

    Lets go of all at the end but ``leased``, where this process had that one before: a worker's run goes to the next
    worker. Signs of life come from a thread of their own.
    """
    mine = owner()
    stays = leased if leased is not None and registry.runs.get(leased).lease_owner == mine else None
    for run in runs:
        registry.runs.take(run, mine, gone=is_gone, asked=leased is not None)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            for run in runs:
                registry.runs.heartbeat(run, mine)

    thread = threading.Thread(target=beat, name="umbel-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for run in runs:
            if run != stays:
                registry.runs.release(run, mine)
