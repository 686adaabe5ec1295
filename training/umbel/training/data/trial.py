"""``umbel data check --task``: what a training would meet in its data, token by token, found before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umbel.backbone.backbone import Backbone
from umbel.core.contract import Contract, OutputHead
from umbel.core.settings import Settings
from umbel.training.data.check import leaks, rare_labels, repeats
from umbel.training.data.encode import EncodedRows, encode_rows
from umbel.training.data.rows import ALL_TOO_LONG, OTHER_LABEL, Row
from umbel.training.data.source import Splits, balance, load_splits
from umbel.training.prepared import contract_of
from umbel.training.task import Task

Level = Literal["error", "warning"]

_SKEW = 20
"""How many times commoner one label may be than another without a word."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know or to mend. An error means that training would be refused or learn nothing."""

    level: Level
    what: str
    fix: str


def _error(what: str, fix: str) -> Finding:
    return Finding("error", what, fix)


def _warning(what: str, fix: str) -> Finding:
    return Finding("warning", what, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    rows: int
    tokens: int
    median: int
    p95: int
    longest: int
    truncated: int
    """Rows whose text is cut to ``max_length``."""
    left_out: int
    """Rows that are too long to learn an answer from."""
    copies: int
    """Rows whose text (case, punctuation, links and names aside) came before in the same split with the same answer."""
    balance: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    name: str
    digest: str
    labels: tuple[str, ...]
    splits: dict[str, SplitReport]
    leaks: dict[str, int]
    """Rows of validation and test whose text is in train, too."""
    contradictions: int
    """Rows of train whose text came before with another answer."""
    findings: list[Finding]

    @property
    def trainable(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)


def try_data(task: Task, backbone: Backbone, settings: Settings) -> Trial:
    """Reads and encodes all splits of a task. Raises DataError for rows that cannot even be read, naming the line."""
    splits = load_splits(task, settings)
    contract = contract_of(task, splits, backbone)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    encoded = {}
    for name, rows in parts.items():
        with splits.naming(name):
            encoded[name] = encode_rows(rows, contract, backbone)
    reports = {name: _report(rows, encoded[name], contract) for name, rows in parts.items()}
    leaked = {name: leaks(splits.train, parts[name]) for name in ("validation", "test")}
    _, contradictions = repeats(splits.train)
    return Trial(
        name=splits.name,
        digest=splits.digest,
        labels=contract.labels,
        splits=reports,
        leaks=leaked,
        contradictions=contradictions,
        findings=[
            *_of_splits(splits, reports, contract),
            *_of_labels(reports["train"].balance, "word" if contract.output_head is OutputHead.TAG else "row"),
            *_of_tokens(encoded["train"], backbone, contract),
            *_of_copies(leaked, contradictions if contract.labels else 0),
        ],
    )


def _report(rows: Sequence[Row], encoded: EncodedRows, contract: Contract) -> SplitReport:
    lengths = np.array([len(text.ids) for example in encoded.examples for text in example.sequences] or [0])
    return SplitReport(
        rows=len(rows),
        tokens=int(lengths.sum()),
        median=int(np.median(lengths)),
        p95=int(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        truncated=encoded.truncated,
        left_out=encoded.left_out,
        copies=repeats(rows)[0],
        balance=balance(rows, contract.labels),
    )


def _of_splits(splits: Splits, reports: dict[str, SplitReport], contract: Contract) -> list[Finding]:
    found = []
    train = reports["train"]
    if train.rows == train.left_out:
        found.append(_error(f"no training row fits into max_length {contract.max_length}.", ALL_TOO_LONG))
    elif train.left_out:
        found.append(_warning(f"{train.left_out} training rows are too long and left out.", "raise --max-length"))
    if train.truncated > train.rows // 20:
        share = 100 * train.truncated / train.rows
        found.append(_warning(f"{share:.0f} % of the training rows are cut.", "raise --max-length"))
    for name in ("validation", "test"):
        if not reports[name].rows:
            found.append(_warning(f"there are no {name} rows.", f"train with a file for --{name}"))
    if splits.test and len(splits.test) < 100:
        found.append(
            _warning(
                f"{len(splits.test)} test rows show only large differences.",
                "give more rows or --test FILE, or train with --test-fraction 0.3",
            )
        )
    return found


def _of_labels(counts: dict[str, int], noun: str) -> list[Finding]:
    found = []
    if len(counts) == 1:
        found.append(_error(f"every training row has the label {next(iter(counts))!r}.", OTHER_LABEL))
    if missing := [label for label, count in counts.items() if count == 0]:
        found.append(_error(f"no training row has the label {missing[0]!r}.", "add rows, or drop it from --labels"))
    found += [_warning(what, fix) for what, fix in rare_labels(counts, noun)]
    present = [count for count in counts.values() if count]
    if present and max(present) > _SKEW * min(present):
        found.append(
            _warning(
                f"the commonest label has {max(present) // min(present)} times the rarest's {noun}s.",
                "look at macro_f1",
            )
        )
    return found


def _of_tokens(encoded: EncodedRows, backbone: Backbone, contract: Contract) -> list[Finding]:
    bos, found = backbone.tokenizer.bos, []
    doubled = sum(list(example.ids[:2]) == [bos, bos] for example in encoded.examples) if bos is not None else 0
    if doubled:
        found.append(
            _error(
                f"{doubled} rows begin with two {backbone.tokenizer.token(bos or 0)}.",
                "write no special tokens into texts",
            )
        )
    empty = sum(example.count == 0 for example in encoded.examples)
    if empty:
        found.append(_error(f"{empty} rows have nothing to learn from.", "give each an answer"))
    return found


def _of_copies(leaks: dict[str, int], contradictions: int) -> list[Finding]:
    found = [
        _warning(
            f"{count} {name} rows are leaks: their text is in train, too.", "remove them: scores would be too good"
        )
        for name, count in leaks.items()
        if count
    ]
    if contradictions:
        what = f"{contradictions} training rows are contradictions: their text came before with another answer."
        found.append(_warning(what, "decide for one"))
    return found
