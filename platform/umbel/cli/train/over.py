"""Whether a run is over: there is nothing to go on with, and what came of it can be told.

One that failed or was cancelled may be gone on with while its folder is there: the disk has room again, say. So may
one that was trained and not published.
"""

from typing import TYPE_CHECKING

from umbel.cli.train.became import became
from umbel.cli.train.begin import was_begun
from umbel.core.errors import Conflict, NotFound
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import Run
    from umbel.registry.registry import Registry

_NEWEST = 100
"""Runs of a name that are looked at."""


def refuse_over(registry: "Registry", settings: Settings, run: "Run") -> None:
    """Raises Conflict (``run_finished``)."""
    made = _made(registry, run)
    if not _is_over(settings, run, made):
        return
    version = "" if made is None else f": it became {made}"
    raise Conflict(
        f"{run.id} {run.status.as_told} already{version}.", code="run_finished", hint=f"umbel runs show {run.id}"
    )


def run_to_resume(registry: "Registry", settings: Settings, run: str) -> str:
    """The run of that id, or the newest of an adapter of that name that can go on; else its newest that is over.

    What names neither comes back as it is. Whether another process works on it changes nothing here, so that all
    processes of one job find the same run.
    """
    try:
        return registry.runs.get(run).id
    except NotFound:
        named = registry.runs.list(name=run, limit=_NEWEST).items
    over = [each for each in named if _is_over(settings, each, _made(registry, each))]
    left = [each for each in named if each not in over and (each.status == "queued" or was_begun(settings, each.id))]
    return next((each.id for each in [*left, *over]), run)


def _made(registry: "Registry", run: "Run") -> str | None:
    """The version that it became."""
    end = became(registry, run.id)
    return None if end is None else end.version


def _is_over(settings: Settings, run: "Run", made: str | None) -> bool:
    return run.finished_at is not None and (made is not None or not was_begun(settings, run.id))
