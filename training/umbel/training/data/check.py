"""What there is to know about data before training on them: form, balance, copies, contradictions, leaks."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import median

from umbel.core.settings import Settings
from umbel.training.data.installed import find, installed, not_found
from umbel.training.data.records import AS_NAMED, Columns, needed_part, part_of
from umbel.training.data.rows import (
    FORMS,
    ChatRow,
    LabelledRow,
    PairRow,
    PromptRow,
    Row,
    TaggedRow,
    ValuedRow,
    nothing_to_tell_apart,
    only_label,
    read_rows,
    text_of,
)
from umbel.training.data.splits import SPLITS, text_key

_FORM_OF = {
    LabelledRow: "classify",
    ValuedRow: "regress",
    TaggedRow: "tag",
    PairRow: "embed",
    PromptRow: "prompt",
    ChatRow: "messages",
}


RARE = 10
"""Training rows that a label needs before anything can be learnt of it."""
_MOST_TOLD = 3
_ALIKE = 0.8
"""How like another label a misspelt one is: ``difflib``'s ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    form: str
    """A key of ``FORMS``."""
    rows: dict[str, int]
    """By split; a single file is ``train``."""
    labels: dict[str, int]
    """Rows with each label or words with each tag, most frequent first."""
    median_length: int
    """Characters of the inputs."""
    longest: int
    copies: int
    """Rows of train whose text (case, punctuation and links aside) came before with the same answer."""
    contradictions: int
    """Rows of train whose text came before with another answer."""
    leaks: int | None
    """Rows of the test whose text is in train; None where there is no test."""
    warnings: tuple[str, ...] = ()
    """What a training would refuse, and labels too rare to learn."""


def check_data(what: str, settings: Settings, *, test: str | None = None, columns: Columns = AS_NAMED) -> DataReport:
    """Reads every row. Raises NotFound or DataError naming file, line and the form expected."""
    paths = _paths(what, settings) | ({"test": Path(test)} if test else {})
    parts = {split: read_rows(path, columns=columns) for split, path in paths.items()}
    train = parts["train"]
    lengths = [len(text_of(row)) for rows in parts.values() for row in rows]
    copies, contradictions = repeats(train)
    form, labels = _FORM_OF[type(train[0])], _labels(train)
    assert form in FORMS
    return DataReport(
        form=form,
        rows={split: len(rows) for split, rows in parts.items()},
        labels=labels,
        median_length=round(median(lengths)),
        longest=max(lengths),
        copies=copies,
        contradictions=contradictions,
        leaks=leaks(train, parts["test"]) if "test" in parts else None,
        warnings=_warnings(paths["train"], train, labels),
    )


def _warnings(path: Path, train: Sequence[Row], labels: Mapping[str, int]) -> tuple[str, ...]:
    label = only_label(train)
    if label is not None:
        error = nothing_to_tell_apart(path, label)
        return (f"{error.message} fix: {error.hint}",)
    noun = "word" if isinstance(train[0], TaggedRow) else "row"
    return tuple(f"{what} fix: {fix}" for what, fix in rare_labels(labels, noun))


def rare_labels(counts: Mapping[str, int], noun: str) -> list[tuple[str, str]]:
    """(what, fix) of the rarest labels, of which nothing can be learnt, with what each may be a misspelling of."""
    common = [label for label, count in counts.items() if count >= RARE]
    rare = sorted((label for label, count in counts.items() if 0 < count < RARE), key=counts.__getitem__)
    return [_rare(label, counts[label], noun, likely_label(label, common)) for label in rare[:_MOST_TOLD]]


def _rare(label: str, count: int, noun: str, like: str | None) -> tuple[str, str]:
    meant = f"did you mean {like!r}? else " if like is not None else ""
    return f"{label!r} has {count} training {noun}{'' if count == 1 else 's'}.", f"{meant}give at least {RARE}"


def likely_label(label: str, known: Sequence[str]) -> str | None:
    """The known label that this one may be a misspelling of."""
    return next(iter(get_close_matches(label, known, n=1, cutoff=_ALIKE)), None)


def leaks(train: Sequence[Row], test: Sequence[Row]) -> int:
    """Rows of the test whose text is in train, near copies too."""
    wanted = Counter(text_key(text_of(row)) for row in test)
    found = {key for row in train if (key := text_key(text_of(row))) in wanted}
    return sum(wanted[key] for key in found)


def _paths(what: str, settings: Settings) -> dict[str, Path]:
    given = Path(what)
    if given.is_file():
        return {"train": given}
    if not given.is_dir() and what not in {dataset.name for dataset in installed(settings)}:
        raise not_found(settings, what)
    folder = given if given.is_dir() else find(settings, what).folder
    there = {split: part_of(folder, split) for split in SPLITS}
    return {split: path for split, path in there.items() if path.is_file()} | {"train": needed_part(folder, "train")}


def _labels(rows: Sequence[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(getattr(row, "labels", ()))
        counts.update(getattr(row, "tags", ()))
    return dict(counts.most_common())


def repeats(rows: Sequence[Row]) -> tuple[int, int]:
    """(copies, contradictions): rows whose text came before with the same answer, and with other answers only."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    copies = contradictions = 0
    for row in rows:
        answers, answer = seen[text_key(text_of(row))], _answer(row)
        copies += answer in answers
        contradictions += bool(answers) and answer not in answers
        answers.add(answer)
    return copies, contradictions


def _answer(row: Row) -> str:
    if isinstance(row, PromptRow):
        return row.completion
    if isinstance(row, ChatRow):
        return row.messages[-1]["content"]
    if isinstance(row, PairRow):
        return row.positive
    return str(row.value if isinstance(row, ValuedRow) else row.tags if isinstance(row, TaggedRow) else row.labels)
