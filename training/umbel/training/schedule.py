"""How fast to learn: the peak learning rate by rule, and its course over the steps."""

import math
from dataclasses import dataclass

from umbel.adapters.method import Method
from umbel.training.task import Decay, Task

_WIDTH = 2000
_POWER = 0.781
"""Llama's exponent in ``lr = base * (2000 / hidden) ** 0.781``, fitted over many models by Thinking Machines
(tinker-cookbook, hyperparam_utils.py): narrow backbones want larger steps, and the rank does not matter."""

TUNING_RATE = 5e-5
"""Base for a backbone's own tensors: a tenth of LoRA's, by the same authors' fit."""


def default_learning_rate(method: Method, hidden: int) -> float:
    """Peak learning rate for a method on a backbone of this width, two digits of it."""
    return by_width(method.learning_rate, hidden)


def by_width(base: float, hidden: int) -> float:
    return float(f"{base * (_WIDTH / hidden) ** _POWER:.2g}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate of each step; a pure function of the step, so that nothing has to be stored."""

    peak: float
    steps: int
    warmup: int
    decay: Decay

    @classmethod
    def of(cls, task: Task, peak: float, steps: int) -> "Schedule":
        return cls(peak, steps, min(math.ceil(task.warmup * steps), steps - 1), task.decay)

    def at(self, step: int) -> float:
        """Of step 0, 1, ...: rises linearly to the peak, then falls towards zero, which comes after the last step."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        if self.decay == "constant":
            return self.peak
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)
