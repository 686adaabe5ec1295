"""What `make bench-methods` asks of both systems: datasets, methods, budget, and what one result is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel.evaluation.questions import Questions, questions_of
from umbel.training import Task
from umbel.training.prepared import Prepared
from umbel.training.taskfile import task_of

DATA: Mapping[str, str] = {"tweets-sentiment": "classify", "drug-reviews": "classify", "pronounce": "generate"}
"""Dataset to output head."""
METHODS: Mapping[str, dict[str, Any]] = {
    "lora": {"rank": 8, "alpha": 16.0},
    "llama_adapter": {"length": 10},
    "prefix": {"length": 20},
    "prompt": {"length": 20},
    "p_tuning": {"length": 20},
    "ia3": {},
    "bottleneck": {"width": 32},
    "none": {},
}
"""Options, the same for both systems; learning rates are umbel's rule for the method, given to both."""
NEW_TOKENS = 24
"""Most tokens of a pronunciation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The same for every cell."""

    steps: int = 24
    batch_size: int = 8
    max_length: int = 32
    held_out: int = 120
    """Rows judged on (fewer where there are fewer)."""
    words: int = 60
    """Of them where an answer is generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method trained once, by one system, from one seed."""

    data: str
    system: str
    method: str
    seed: int
    metric: str
    value: float
    rows: int
    """Held-out rows judged on."""
    parameters: int
    """Trained."""
    bytes: int
    """Of all files of the saved adapter."""
    cpu_seconds: float
    """Of training, this process alone."""
    seconds: float
    """Of training, by the clock: other work on the machine counts in."""
    shared: int = 1
    """Adapters that trained in the same passes; their time is divided by this."""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.data, self.system, self.method, self.seed


def possible(data: str, method: str) -> bool:
    """Without a method only an output head is trained, and generation has none."""
    return not (method == "none" and DATA[data] == "generate")


def task_for(data: str, method: str, seed: int, budget: Budget) -> Task:
    """The last step's weights are judged, as no system looks at validation rows in between."""
    return task_of(
        {
            "name": f"{method}-{seed}",
            "data": data,
            "task": DATA[data],
            "method": method,
            "seed": seed,
            "limit": 4 * budget.steps * budget.batch_size,
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "max_length": budget.max_length,
            "decay": "linear",
            "eval_every": budget.steps,
            "validation_limit": 1,
            "max_tokens": NEW_TOKENS,
            **METHODS[method],
        }
    )


def questions_for(prepared: Prepared, budget: Budget) -> Questions:
    generated = DATA[prepared.task.data] == "generate"
    rows = prepared.splits.test[: budget.words if generated else budget.held_out]
    return questions_of(rows, prepared.contract.output_head, prepared.metric, prepared.splits.name)
