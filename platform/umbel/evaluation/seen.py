"""How many of the rows that a version is judged on it was trained on: its lineage tells, as far as it is known."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from umbel.core.errors import ConfigError, NotFound, UsageError
from umbel.core.settings import Settings
from umbel.evaluation.questions import Questions, keys_of
from umbel.registry.records import Version
from umbel.registry.registry import Registry
from umbel.training.data.seen import Seen, seen_in
from umbel.training.task import Task
from umbel.training.taskfile import known_options, method_options, task_of


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a version's training, its parents' included."""

    name: str
    seen: Seen
    whole: bool
    """False where some of its lineage cannot be told: imported, or its data are other bytes now."""

    def count(self, questions: Questions) -> int | None:
        """Rows of the questions that it was trained on (at least, where not ``whole``); None where nothing is known."""
        found = sum(key in self.seen.trained for key in keys_of(questions.rows))
        return found if found or self.whole else None

    def warning(self, questions: Questions) -> str | None:
        """A sentence and its fix, where it was trained on some of the rows."""
        if not (found := self.count(questions)):
            return None
        least = "" if self.whole else "at least "
        rows = f"{least}{found:,} of these {len(questions.rows):,} rows"
        return f"beware: {self.name} was trained on {rows}; new texts may go otherwise\n  leave them out: --unseen"


def known_of(registry: Registry, name: str, data: str, settings: Settings, *, among: Collection[str]) -> Known:
    """``name`` is ``name:3``; ``among`` are the keys of the texts that matter, ``data`` where they were read from."""
    seen, whole = Seen(), True
    for version in _lineage(registry, name):
        task = None if version is None else _task(registry, version)
        found = None
        if version is not None and version.dataset is not None and task is not None:
            found = seen_in(task, data, settings, digest=version.dataset, among=among)
        seen, whole = seen | (found or Seen()), whole and found is not None
    return Known(name, seen, whole)


def unseen_by(known: Collection[Known]) -> frozenset[str]:
    """Keys to leave out so that no version is judged on what it, or the choice of its best step, looked at.

    Raises UsageError (``training_unknown``) where that cannot be told.
    """
    if unknown := [each.name for each in known if not each.whole]:
        raise UsageError(
            f"what {' and '.join(unknown)} was trained on is not known, so --unseen cannot leave it out.",
            code="training_unknown",
            param="unseen",
            hint="it was imported, or its data are gone or other bytes now; give rows kept from training",
        )
    return frozenset().union(*(each.seen.trained | each.seen.chosen for each in known))


def _lineage(registry: Registry, name: str) -> Iterator[Version | None]:
    """The version and its parents; None where one is known no more."""
    following: str | None = name
    while following is not None:
        try:
            version = registry.versions.get(following)
        except NotFound:
            yield None
            return
        yield version
        following = None if version.parent is None else str(version.parent)


def _task(registry: Registry, version: Version) -> Task | None:
    """What its run was asked, without what is not of the task; None for what umbel has not trained here."""
    if version.run is None:
        return None
    try:
        return _read(registry.runs.get(version.run).params)
    except (NotFound, ConfigError):
        return None


def _read(params: Mapping[str, Any]) -> Task:
    known = known_options().keys() | method_options(str(params["method"])).keys()
    return task_of({key: value for key, value in params.items() if key in known and value is not None})
