"""Levenshtein distance between sequences of tokens: insertions, deletions and substitutions, one each."""

from collections.abc import Sequence


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest single-token changes that turn ``one`` into ``other``."""
    row = list(range(len(other) + 1))
    for i, token in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (token != wanted))
    return row[-1]
