"""Finds a task's data and splits it: train, validation, and a test that training never sees."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from umbel.core.contract import OutputHead
from umbel.core.digests import digest_file, digest_json
from umbel.core.errors import DataError
from umbel.core.settings import Settings
from umbel.training.data.check import leaks
from umbel.training.data.installed import INFO_FILE, DatasetInfo, find, installed, not_found
from umbel.training.data.records import Columns, needed_part, part_of
from umbel.training.data.rows import Row, check_there, iter_rows, nothing_to_tell_apart, only_label, read_rows, text_of
from umbel.training.data.splits import text_key, unit
from umbel.training.data.spool import Spool, spool_rows
from umbel.training.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Rows of one task. No text of validation or test, nor a near copy, is in train where one file was split."""

    train: Sequence[Row]
    """In a file, where they are many (``Settings.spool_bytes``)."""
    validation: Sequence[Row]
    test: Sequence[Row]
    digest: str
    """Of all files it came from; for a pulled dataset, the dataset's own."""
    name: str
    """Of the dataset or file, for cards and plans."""
    labels: tuple[str, ...] = ()
    """As the dataset itself orders them."""
    metric: str | None = None
    """As the dataset itself says."""
    licence: str | None = None
    leaks: int = 0
    """Test rows whose text is in train, too."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Where each split was read from."""

    @contextmanager
    def naming(self, split: str) -> Iterator[None]:
        """A DataError of a row of the split, which knows its line, names the file too."""
        try:
            yield
        except DataError as error:
            if split not in self.files:
                raise
            told = f"{self.files[split]} {error.message}"
            raise DataError(told, code=error.code, param=error.param, hint=error.hint) from None


def load_splits(task: Task, settings: Settings) -> Splits:
    """Reads a task's files. Raises NotFound or DataError naming file and line."""
    folder, info = _folder_of(task, settings)
    paths = paths_of(task, settings)
    parts = read_parts(task, paths, settings)
    return Splits(
        train=parts["train"][: task.limit],
        validation=parts["validation"],
        test=parts["test"],
        digest=digest_of(paths),
        name=folder.name if folder is not None else Path(task.data).name,
        labels=info.labels if info else (),
        metric=info.metric if info and info.output_head is task.output_head else None,
        licence=info.licence if info else None,
        leaks=leaks(parts["train"][: task.limit], parts["test"]),
        files={split: paths.get(split, paths["train"]) for split in parts},
    )


def paths_of(task: Task, settings: Settings) -> dict[str, Path]:
    """The files of a task's splits; those that are missing are taken out of train. Raises NotFound."""
    folder, _ = _folder_of(task, settings)
    files = {"validation": task.validation, "test": task.test}
    paths = {split: Path(given) for split, given in files.items() if given}
    paths["train"] = Path(task.data) if folder is None else needed_part(folder, "train")
    if folder is not None:
        for split in files:
            if split not in paths and part_of(folder, split).is_file():
                paths[split] = part_of(folder, split)
    return paths


def digest_of(paths: Mapping[str, Path]) -> str:
    """Of all files that splits come from, by split; for a pulled dataset, what its ``dataset.json`` says."""
    return digest_json({split: digest_file(path) for split, path in paths.items()})


def look_at(task: Task, settings: Settings, rows: int = 20) -> None:
    """Reads the first rows only: a wrong path, column or form is told before a backbone is loaded.

    Where no list of labels is known it reads on to a second label: that there is none is told as early.
    """
    folder, info = _folder_of(task, settings)
    path = Path(task.data) if folder is None else needed_part(folder, "train")
    columns = Columns(task.text_column, task.label_column)
    read_rows(path, task.output_head, limit=rows, columns=columns)
    if not task.labels and not (info and info.labels):
        label = only_label(iter_rows(path, task.output_head, limit=task.limit, columns=columns))
        if label is not None:
            raise nothing_to_tell_apart(path, label)


def _folder_of(task: Task, settings: Settings) -> tuple[Path | None, DatasetInfo | None]:
    """The folder that ``data`` names, None for a single file."""
    given = Path(task.data)
    if given.is_file():
        return None, None
    if given.is_dir():
        return given, DatasetInfo.read(given) if (given / INFO_FILE).is_file() else None
    if task.data not in {dataset.name for dataset in installed(settings)}:
        raise not_found(settings, task.data)
    found = find(settings, task.data)
    return found.folder, found.info


def read_parts(task: Task, paths: Mapping[str, Path], settings: Settings) -> dict[str, Sequence[Row]]:
    """Train, validation and test, before ``limit``. Raises DataError naming file and line."""
    parts = _read(task, paths, settings)
    _fill_from_train(task, parts)
    return parts


def _read(task: Task, paths: Mapping[str, Path], settings: Settings) -> dict[str, Sequence[Row]]:
    """A limit reads no more than it must, but only where no other split is to be taken out of train."""
    whole = {"validation", "test"} <= paths.keys()
    limit = task.limit if whole else None
    columns = Columns(task.text_column, task.label_column)
    parts: dict[str, Sequence[Row]] = {}
    for split, path in paths.items():
        check_there(path)
        rows = iter_rows(path, task.output_head, limit=limit if split == "train" else None, columns=columns)
        large = path.stat().st_size > settings.spool_bytes
        parts[split] = spool_rows(rows, settings.cache / "spool") if large else list(rows)
    kinds = {type(row) for rows in parts.values() for row in rows[:1]}  # a file's rows are all of one form
    if task.output_head is OutputHead.GENERATE and len(kinds) > 1:
        raise DataError(
            "the splits are of different forms.", code="mixed_forms", hint="write all as prompts or as messages"
        )
    return parts


def held_place(row: Row) -> float:
    """A row's place in [0, 1) that decides whether it is held out, by its text.

    Not by the plain hash: pulled datasets are cut and sorted by that one, so all first rows of one would be held out.
    """
    return unit("held out: " + text_key(text_of(row)))


def _fill_from_train(task: Task, parts: dict[str, Sequence[Row]]) -> None:
    """Takes the missing splits out of train, by a hash of the text: copies stay together, more rows move nothing."""
    fractions = {"validation": task.validation_fraction, "test": task.test_fraction}
    missing = [split for split in fractions if split not in parts]
    held = [held_place(row) for row in parts["train"]] if missing else []
    whole, rest, start = parts["train"], range(len(parts["train"])), 0.0
    for split in missing:
        end = start + fractions[split]
        parts[split] = _chosen(whole, [i for i in rest if start <= held[i] < end])
        start = end
    if missing:
        parts["train"] = _chosen(whole, [i for i in rest if held[i] >= start])
    if not parts["train"]:
        raise DataError(
            "no row is left for training.",
            code="too_few_rows",
            hint="give more rows, or files of their own with --validation and --test",
        )


def _chosen(rows: Sequence[Row], places: Sequence[int]) -> Sequence[Row]:
    return rows.choose(places) if isinstance(rows, Spool) else [rows[place] for place in places]


def balance(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, int]:
    """Rows of each label, or words of each tag, in the labels' order."""
    counts = Counter(label for row in rows for label in getattr(row, "labels", getattr(row, "tags", ())))
    return {label: counts[label] for label in labels}
