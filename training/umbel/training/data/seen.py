"""Which texts a training looked at: told by its task and files, as long as the files are the same bytes."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from umbel.core.errors import DataError, NotFound
from umbel.core.settings import Settings
from umbel.training.data.rows import Row, text_of
from umbel.training.data.source import digest_of, paths_of, read_parts
from umbel.training.data.splits import text_key
from umbel.training.task import Task


@dataclass(frozen=True, slots=True)
class Seen:
    """Keys of texts (``text_key``), those only that were asked about."""

    trained: frozenset[str] = frozenset()
    """Were in the training rows."""
    chosen: frozenset[str] = frozenset()
    """Were in the validation rows, by which the best step was chosen."""

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(self.trained | other.trained, self.chosen | other.chosen)


def seen_of(task: Task, settings: Settings, *, digest: str, among: Collection[str]) -> Seen | None:
    """What a training on ``task`` whose splits had this digest saw of ``among``; None where its files are others now.

    The split goes by a hash of the text, so equal files give the rows that were trained on.
    """
    try:
        paths = paths_of(task, settings)
        if digest_of(paths) != digest:
            return None
        parts = read_parts(task, paths, settings)
    except (NotFound, DataError, OSError):
        return None
    trained, chosen = parts["train"][: task.limit], parts["validation"][: task.validation_limit]
    return Seen(_keys(trained, among), _keys(chosen, among))


def seen_in(task: Task, data: str, settings: Settings, *, digest: str, among: Collection[str]) -> Seen | None:
    """As ``seen_of``; where the task's own path leads elsewhere by now, ``data`` may be the file that it meant."""
    found = seen_of(task, settings, digest=digest, among=among)
    return found if found is not None else seen_of(replace(task, data=data), settings, digest=digest, among=among)


def _keys(rows: Iterable[Row], among: Collection[str]) -> frozenset[str]:
    return frozenset(key for row in rows if (key := text_key(text_of(row))) in among)
