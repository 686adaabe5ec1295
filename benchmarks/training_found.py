"""One line of the table of training, how much is measured, and the clock it is measured by."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.training.observer import Observer


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    folder: Path
    rounds: int
    rows: int
    sweep_rows: int
    sweep_steps: int
    data: str


@dataclass(frozen=True, slots=True)
class Found:
    """One line of the table."""

    what: str
    value: float
    floor: float
    want: float
    unit: str = "x"
    less_is_better: bool = False
    detail: str = ""

    @property
    def verdict(self) -> str:
        def reaches(target: float) -> bool:
            return self.value <= target if self.less_is_better else self.value >= target

        return "reached" if reaches(self.want) else "floor" if reaches(self.floor) else "missed"


class Clock(Observer):
    """Seconds from the first step to the end: what reading and hashing the backbone take is not training."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def planned(self, plan: Any) -> None:
        self.began = time.perf_counter()
        self.plan = plan

    def finished(self, trainee: Any) -> None:
        self.seconds = time.perf_counter() - self.began
