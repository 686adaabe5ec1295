"""What can be had without reading the input: a model that does no better has learnt nothing.

Choose the constant on the training rows and score it on the test rows with the metric itself, for example
``accuracy(test, [majority_label(train)] * len(test))``.

Shape letters here:  P pronunciations   L their padded length   V tokens
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel.core.errors import DataError
from umbel.evaluation.metrics import References, accuracy, phoneme_error_rate
from umbel.evaluation.scored import Scored

_BEAM = 8
_SAMPLE = 5_000
"""References looked at: every k-th of more, so that the search stays within a second or two."""


def majority_label(gold: Sequence[str]) -> str:
    """The most frequent label; of equals the first in the alphabet, so that the answer never depends on the order."""
    if not gold:
        raise DataError("there are no rows to take a majority of.", code="no_rows")
    counts = Counter(gold)
    return min(counts, key=lambda label: (-counts[label], label))


def majority_accuracy(gold: Sequence[str], *, chosen_on: Sequence[str] | None = None) -> Scored:
    """Accuracy of always answering the majority label of ``chosen_on`` (the training rows; ``gold`` itself if None)."""
    return accuracy(gold, [majority_label(chosen_on if chosen_on is not None else gold)] * len(gold))


def constant_phoneme_error_rate(references: References, *, chosen_on: References | None = None) -> Scored:
    """Phoneme error rate of always saying ``best_constant`` of ``chosen_on`` (``references`` itself if None)."""
    constant = best_constant(chosen_on if chosen_on is not None else references)
    return phoneme_error_rate(references, [constant] * len(references))


def best_constant(references: References) -> str:
    """The one answer with the lowest phoneme error rate found for all ``references`` together.

    A beam search that appends tokens one by one (the exact answer, a median string, is NP-hard), from nothing and
    until no longer answer helps; what is shared by all answers in the beam is one row of the edit-distance table.
    """
    table = _Table.of(references[:: -(-len(references) // _SAMPLE)] if references else [])
    beam = [_Answer((), table.rows_of_nothing())]
    best, best_rate = beam[0], table.rate(beam[0].rows)
    while True:
        longer = [table.append(answer, token) for answer in beam for token in range(len(table.tokens))]
        ranked = sorted(longer, key=lambda answer: (table.rate(answer.rows), answer.tokens))
        beam = ranked[:_BEAM]
        if not beam or table.rate(beam[0].rows) >= best_rate:
            return " ".join(table.tokens[token] for token in best.tokens)
        best, best_rate = beam[0], table.rate(beam[0].rows)


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    rows: NDArray[np.int32]
    """(P, L + 1): the last row of the edit-distance table against each pronunciation."""


@dataclass(frozen=True, slots=True)
class _Table:
    tokens: tuple[str, ...]
    codes: NDArray[np.int32]
    """(P, L), padded with -1, which equals no token."""
    lengths: NDArray[np.intp]
    starts: NDArray[np.intp]
    """Where each word's pronunciations begin."""

    @classmethod
    def of(cls, references: References) -> "_Table":
        words = [[wanted] if isinstance(wanted, str) else list(wanted) for wanted in references]
        spoken = [pronunciation.split() for word in words for pronunciation in word]
        if not spoken or not all(spoken) or not all(words):
            raise DataError("best_constant needs at least one reference, none of them empty.", code="no_rows")
        tokens = tuple(sorted({token for each in spoken for token in each}))
        place = {token: code for code, token in enumerate(tokens)}
        lengths = np.array([len(each) for each in spoken], dtype=np.intp)
        codes = np.full((len(spoken), int(lengths.max())), -1, dtype=np.int32)
        for p, each in enumerate(spoken):
            codes[p, : len(each)] = [place[token] for token in each]
        starts = np.cumsum([0, *(len(word) for word in words[:-1])]).astype(np.intp)
        return cls(tokens, codes, lengths, starts)

    def rows_of_nothing(self) -> NDArray[np.int32]:
        pronunciations, longest = self.codes.shape
        return np.tile(np.arange(longest + 1, dtype=np.int32), (pronunciations, 1))

    def append(self, answer: _Answer, token: int) -> _Answer:
        """One row of the table from the row above it, for all pronunciations at once."""
        above = answer.rows
        row = np.empty_like(above)
        row[:, 0] = above[:, 0] + 1
        row[:, 1:] = np.minimum(above[:, 1:] + 1, above[:, :-1] + (self.codes != token))
        steps = np.arange(row.shape[1], dtype=np.int32)
        row = np.minimum.accumulate(row - steps, axis=1) + steps  # a run of insertions from any cell to the left
        return _Answer((*answer.tokens, token), row)

    def rate(self, rows_PL: NDArray[np.int32]) -> float:
        """Mean phoneme error rate of an answer with these rows: each word's best pronunciation, at most 1."""
        distance = rows_PL[np.arange(len(rows_PL)), self.lengths]
        best = np.minimum.reduceat(distance / self.lengths, self.starts)
        return float(np.minimum(best, 1.0).mean())
