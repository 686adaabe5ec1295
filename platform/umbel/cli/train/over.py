"""Whether a run is over: there is nothing to go on with, and what came of it can be told.

One that failed or was cancelled may be gone on with while its folder is there: the disk has room again, say. So may
one that was trained and not published.
"""

from typing import TYPE_CHECKING

from umbel.cli.train.became import became
from umbel.cli.train.begin import was_begun
from umbel.core.errors import Conflict
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import Run
    from umbel.registry.registry import Registry


def refuse_over(registry: "Registry", settings: Settings, run: "Run") -> None:
    """Raises Conflict (``run_finished``)."""
    end = became(registry, run.id)
    made = None if end is None else end.version
    if run.finished_at is None or (made is None and was_begun(settings, run.id)):
        return
    version = "" if made is None else f": it became {made}"
    raise Conflict(
        f"{run.id} {run.status.as_told} already{version}.", code="run_finished", hint=f"umbel runs show {run.id}"
    )
