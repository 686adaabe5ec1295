"""Rows of a dataset as questions and right answers, whatever their form."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_json
from umbel.core.errors import DataError, NotFound
from umbel.core.names import nearest
from umbel.core.settings import Settings
from umbel.training.data.installed import INFO_FILE, DatasetInfo, find
from umbel.training.data.records import AS_NAMED, Columns, needed_part
from umbel.training.data.rows import (
    ChatRow,
    LabelledRow,
    PairRow,
    PromptRow,
    Row,
    TaggedRow,
    ValuedRow,
    read_rows,
    text_of,
)
from umbel.training.data.splits import text_key

_DEFAULT_METRIC = {
    OutputHead.CLASSIFY: "accuracy",
    OutputHead.REGRESS: "rmse",
    OutputHead.TAG: "accuracy",
    OutputHead.GENERATE: "exact_match",
    OutputHead.EMBED: "mrr",
}


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked and what is right, row by row, and the metric that the data themselves name."""

    rows: list[Row]
    head: OutputHead
    metric: str
    name: str
    suite: str
    """Digest of the questions and answers: two evaluations of one suite can be paired item by item."""

    def ids(self) -> list[str]:
        """One name per row, stable under reordering of the metric's results."""
        return [f"{index:07d}" for index in range(len(self.rows))]


def load_questions(
    data: str,
    head: OutputHead,
    settings: Settings,
    *,
    limit: int | None = None,
    columns: Columns = AS_NAMED,
    without: Collection[str] = (),
) -> Questions:
    """A JSONL or CSV file, a dataset's folder, or the name of a dataset of the home (its test split).

    ``without``: keys of texts that are left out before ``limit`` counts. Raises NotFound or DataError naming file,
    line and the form expected.
    """
    path, info = _file_of(data, settings)
    rows = read_rows(path, head, limit=None if without else limit, columns=columns)
    if without:
        rows = [row for row, key in zip(rows, keys_of(rows), strict=True) if key not in without][:limit]
        if not rows:
            raise DataError(
                f"every row of {path} was seen in training.",
                code="nothing_unseen",
                hint="give rows that were kept from training, or leave --unseen out",
            )
    metric = info.metric if info is not None and info.output_head is head else _DEFAULT_METRIC.get(head)
    if metric is None:
        raise DataError(f"no metric scores a {head} head yet.", code="no_metric")
    name = path.stem if info is None else f"{path.parent.name}/{path.stem}"
    return questions_of(rows, head, metric, name)


def check_labels(questions: Questions, contract: Contract, name: str) -> None:
    """Raises DataError (``unknown_label``) for a row that ``name`` cannot answer rightly, before any is asked: what it
    gives to a label that it does not know has no probability to be scored."""
    if contract.output_head is not OutputHead.CLASSIFY or contract.multi_label:
        return
    for row in questions.rows:
        if isinstance(row, LabelledRow) and (unknown := [each for each in row.labels if each not in contract.labels]):
            near = nearest(unknown[0], contract.labels)
            meant = f"did you mean {near!r}? " if near else ""
            raise DataError(
                f"line {row.line}: {name} does not know the label {unknown[0]!r}; its labels are "
                f"{', '.join(contract.labels)}.",
                code="unknown_label",
                hint=f"{meant}mend or leave out such rows, or train a version on rows with that label",
            )


def keys_of(rows: Iterable[Row]) -> list[str]:
    """What tells whether a row's text was trained on: equal for near copies."""
    return [text_key(text_of(row)) for row in rows]


def questions_of(rows: list[Row], head: OutputHead, metric: str, name: str) -> Questions:
    """Rows that are in memory already."""
    return Questions(rows, head, metric, name, digest_json([_asked(row) for row in rows]))


def _asked(row: Row) -> list[object]:
    """What the answer hangs on; a hard negative is one more candidate."""
    negative = [row.negative] if isinstance(row, PairRow) and row.negative is not None else []
    return [text_of(row), list(answers(row)), *negative]


def _file_of(data: str, settings: Settings) -> tuple[Path, DatasetInfo | None]:
    given = Path(data)
    if given.is_file():
        return given, DatasetInfo.read(given.parent) if (given.parent / INFO_FILE).is_file() else None
    if given.is_dir():
        return needed_part(given, "test"), DatasetInfo.read(given) if (given / INFO_FILE).is_file() else None
    if "/" in data or given.suffix:
        raise NotFound(f"there is no file or folder {data}.", code="data_not_found", hint="check the path")
    dataset = find(settings, data)
    return dataset.split("test"), dataset.info


def several(labels: Iterable[str]) -> str:
    """A set of labels as one text: right only if all of them are."""
    return ", ".join(sorted(labels))


def answers(row: Row) -> Sequence[str]:
    """All right answers of a row, as text."""
    if isinstance(row, PromptRow):
        return row.accepted
    if isinstance(row, ChatRow):
        return (row.messages[-1]["content"],)
    if isinstance(row, LabelledRow):
        return (several(row.labels),) if row.multi else row.labels
    if isinstance(row, ValuedRow):
        return (repr(row.value),)
    if isinstance(row, TaggedRow):
        return (" ".join(row.tags),)
    return (row.positive,)
