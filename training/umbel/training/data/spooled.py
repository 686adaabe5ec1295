"""Encoding of rows that are too many to hold, a few at a time: the same examples as of all at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from umbel.backbone.backbone import Backbone
from umbel.core.contract import Contract
from umbel.core.settings import Settings
from umbel.training.data.encode import EncodedRows, Example, encode_rows
from umbel.training.data.rows import ChatRow, PairRow, Row
from umbel.training.data.spool import Spool, spool_examples

_AT_ONCE = 1024
"""Rows."""


def encode_all(rows: Sequence[Row], contract: Contract, backbone: Backbone, settings: Settings) -> EncodedRows:
    """As ``encode_rows``; examples of rows in a file are in a file, too."""
    if not isinstance(rows, Spool):
        return encode_rows(rows, contract, backbone)
    counts = _Counts()
    examples = spool_examples(_encoded(rows, contract, backbone, counts), settings.cache / "spool")
    return EncodedRows(examples, counts.truncated, counts.left_out)


@dataclass(slots=True)
class _Counts:
    truncated: int = 0
    left_out: int = 0


def _encoded(rows: Sequence[Row], contract: Contract, backbone: Backbone, counts: _Counts) -> Iterator[Example]:
    made = 0
    for start in range(0, len(rows), _AT_ONCE):
        some = list(rows[start : start + _AT_ONCE])
        found = encode_rows(some, contract, backbone)
        counts.truncated += found.truncated
        counts.left_out += found.left_out
        by = made if isinstance(some[0], ChatRow) else 3 * start if isinstance(some[0], PairRow) else start
        yield from (_shifted(example, by) for example in found.examples)
        made += len(found.examples)


def _shifted(example: Example, by: int) -> Example:
    """An index is a row's place among all; dropout and order hang on it."""
    return replace(example, index=example.index + by, mates=tuple(_shifted(mate, by) for mate in example.mates))
