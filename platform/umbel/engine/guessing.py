"""What a row may say next, guessed from what it said before: tokens that followed the same tokens earlier on.

A step of a few rows takes hardly longer than one of a single row, since it waits for the weights. So the guesses are
read beside the row's own token, each at its place, and the next token is drawn from every place as it would have been
drawn in a step of its own. As long as a guess is what was drawn, the next place's logits are those that the next step
would have had, to the bit; from the first other one on they are dropped. So nothing changes but the time: draws depend
on logits, seed and place alone, and a row's bits on no company (correctness rule 2).

Answers that repeat the prompt (extraction, correction, code, JSON) or themselves gain; where guesses fail they pause.
Prompt lookup, Saxena 2023; drafts checked in one pass, Leviathan et al. 2023.
"""

from collections.abc import Sequence

TOGETHER = 8
"""Tokens of a step in which rows guess: a tile of the linears, and so nearly the price of one."""
LEAST = 2
"""Guesses for which there is to be room in each row's part of a step: one alone is not worth its place."""
_LENGTHS = (3, 2)
"""Tokens that have to be the same, tried in this order."""
_LOOKED_AT = 4096
"""Tokens before the first guess that are looked at."""
_LONGEST_PAUSE = 16


class Guesser:
    """One row's memory of what followed what."""

    __slots__ = ("_after", "_known", "_patience", "_pause")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        """Runs of tokens, and where the token behind the last of them stands."""
        self._known = 0
        """Tokens whose runs are known."""
        self._pause = 0
        """Steps in which nothing is guessed."""
        self._patience = 1

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens that may follow; none where nothing like the end stood before."""
        if self._pause:
            self._pause -= 1
            return []
        self._learn(tokens)
        for length in _LENGTHS:
            at = self._after.get(tuple(tokens[-length:]))
            if at is not None:
                return _going_on(tokens, at, most)
        return []

    def told(self, hits: int) -> None:
        """How many of the last guesses were right: after none there is a pause, twice as long each time."""
        if hits:
            self._patience = 1
        else:
            self._pause, self._patience = self._patience, min(2 * self._patience, _LONGEST_PAUSE)

    def _learn(self, tokens: Sequence[int]) -> None:
        """Of every token but the last, which nothing follows yet."""
        first = max(self._known, len(tokens) - _LOOKED_AT, 1)
        for at in range(first, len(tokens)):
            for length in _LENGTHS:
                if at >= length:
                    self._after[tuple(tokens[at - length : at])] = at
        self._known = max(self._known, len(tokens))


def _going_on(tokens: Sequence[int], at: int, most: int) -> list[int]:
    """``most`` tokens from ``at`` on; behind the end those that were just guessed, so that a short loop goes round."""
    found: list[int] = []
    for place in range(at, at + most):
        found.append(tokens[place] if place < len(tokens) else found[place - len(tokens)])
    return found
