"""How fast a training goes now, by the clock alone: its last steps, in which a pause of the machine counts little.

A mean over all of it would be spoilt for long by one laptop that was shut, and would still speak of a machine that was
busy an hour ago.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median_low

_WINDOWS, _LOOKS = 32, 4
"""How many of the last ones count."""
_MOST = 3.0
"""No window counts for more than so many times the usual one: rows differ that much in length, pauses more."""


@dataclass(slots=True)
class _Window:
    """One step, or one look, of each adapter that was there, in the same passes."""

    seconds: float = 0.0
    count: int = 0
    tokens: int = 0

    def took(self, seconds: float, tokens: int = 0) -> None:
        self.seconds += seconds
        self.count += 1
        self.tokens += tokens

    @property
    def each(self) -> float:
        return self.seconds / max(1, self.count)


class Speed:
    """Told of each step and each look at the validation rows with the time, as they end."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._windows: deque[_Window] = deque(maxlen=_WINDOWS)
        self._looks: deque[_Window] = deque(maxlen=_LOOKS)
        self._there: set[str] = set()
        self._looking = False

    def start(self, now: float) -> None:
        """What went before was no training."""
        self._since = now

    def stepped(self, name: str, tokens: int, now: float) -> None:
        if name in self._there or not self._windows:  # it has stepped before: this is another window
            self._there.clear()
            self._windows.append(_Window())
        self._there.add(name)
        self._windows[-1].took(now - self._since, tokens)
        self._since, self._looking = now, False

    def looked(self, now: float) -> None:
        if not self._looking:
            self._looks.append(_Window())
        self._looks[-1].took(now - self._since)
        self._since, self._looking = now, True

    @property
    def of_step(self) -> float:
        """Seconds."""
        return sum(self._counted()) / max(1, sum(window.count for window in self._windows))

    @property
    def tokens(self) -> float:
        """In a second of training; looks at the validation rows are not in it."""
        return sum(window.tokens for window in self._windows) / max(1e-9, sum(self._counted()))

    @property
    def of_look(self) -> float | None:
        """Seconds of one adapter's; None before the first."""
        return median_low([look.each for look in self._looks]) if self._looks else None

    def _counted(self) -> list[float]:
        """Seconds of each window."""
        usual = median_low([window.each for window in self._windows]) if self._windows else 0.0
        return [min(window.seconds, _MOST * usual * window.count) for window in self._windows]
