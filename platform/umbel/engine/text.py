"""Tokens to text while they come: only whole characters, and never a part of a stop string."""

from collections.abc import Sequence

from umbel.backbone.tokenizer import Tokenizer

_UNSURE = "�"
"""What an unfinished UTF-8 sequence decodes to."""


class Detokenizer:
    """The deltas of a growing list of tokens; joined they equal decoding the list at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        """The last tokens that were sure, for context (a leading space can depend on it), and those since."""
        self._context = 0
        """How many of the window were sure when it was opened."""
        self._known = ""
        """Text of the window that was given away or precedes it."""

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        unsure = text.endswith(_UNSURE)
        sure = text[:-1] if unsure else text
        if len(sure) < len(self._known):
            return ""
        delta, self._known = sure[len(self._known) :], sure
        if not unsure:
            self._reopen()
        return delta

    def flush(self) -> str:
        """What is left: a sequence that no token finished."""
        text = self._tokenizer.decode(self._window)
        delta, self._known = text[len(self._known) :], text
        return delta

    def _reopen(self) -> None:
        """Drops all but the tokens since the last opening, which become context. Keeps decoding short."""
        since = self._window[self._context :]
        known = self._tokenizer.piece(since[0]) if len(since) == 1 else self._tokenizer.decode(since)
        if known and self._known.endswith(known):
            self._window, self._context, self._known = since, len(since), known


class StopScanner:
    """Passes text on up to the stop string that is complete first, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, delta: str) -> str:
        if not self._stops:
            return delta
        text = self._held + delta
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
