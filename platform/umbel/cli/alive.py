"""Whether somebody works on a run that the registry calls running: its process may be gone without a word."""

from typing import TYPE_CHECKING

from umbel.cli.train.begin import was_begun
from umbel.cli.train.lease import is_gone
from umbel.core.clock import now_ms
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import Run


def interrupted(run: "Run", settings: Settings) -> bool:
    """Its process let go of it, is known to be dead, or was silent for longer than a lease."""
    from umbel.registry.runs import LEASE_MS

    if run.status != "running":
        return False
    if now_ms() - last_heard(run) > LEASE_MS:
        return True
    if run.lease_owner is None:  # what a Python program trains has no owner either, but no folder in the home
        return was_begun(settings, run.id)
    return is_gone(run.lease_owner)


def last_heard(run: "Run") -> int:
    """UTC milliseconds."""
    return run.heartbeat_at or run.created_at
