"""Which configurations a sweep tries: every combination of the values asked for, or rates around the rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from umbel.adapters import catalog
from umbel.core.errors import ConfigError
from umbel.training.prepared import OF_DATA
from umbel.training.schedule import default_learning_rate
from umbel.training.task import Task
from umbel.training.taskfile import task_of

AUTO = "auto"
_AROUND = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)
"""Times the rule's learning rate (or the one given): too high ones fail or fall behind within a few steps."""
_MOST = 64
_NAME = 55
"""Letters of the task's name that candidates keep: a dot and a number come behind."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Choices in the order they were asked for; ties go to the first."""

    task: Task
    """What every candidate is, but for its choice."""
    choices: tuple[Mapping[str, Any], ...]

    @property
    def candidates(self) -> list[Task]:
        """One task per choice; raises ConfigError for a value that the option cannot have."""
        return [self._candidate(place, choice) for place, choice in enumerate(self.choices, 1)]

    def _candidate(self, place: int, choice: Mapping[str, Any]) -> Task:
        given = {key: value for key, value in self.task.as_json().items() if value is not None}
        changed = task_of({**given, **choice}, where="--sweep")
        return replace(changed, name=f"{self.task.name[:_NAME]}.{place}")


def grid_of(task: Task, asked: Sequence[str], hidden: int) -> Grid:
    """``asked`` as on the command line: ``lr=1e-4,3e-4``, ``rank=4,8``, both in one, or ``auto``.

    Raises ConfigError for what is no such list, for options that decide which rows there are, and for more than 64.
    """
    values: dict[str, list[Any]] = {}
    for words in asked:
        for key, found in _read(words).items():
            if key in values:
                raise ConfigError(f"--sweep says {key} twice.", code="invalid_sweep", param="sweep")
            values[key] = found if key != AUTO else []
    if AUTO in values:
        del values[AUTO]
        if "lr" in values:
            raise ConfigError("--sweep auto and --sweep lr=... are two answers to one question.", code="invalid_sweep")
        values["lr"] = _rates(task, hidden)
    choices = tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))
    if len(choices) > _MOST:
        raise ConfigError(
            f"that is {len(choices)} configurations, at most {_MOST} are trained together.",
            code="sweep_too_large",
            param="sweep",
            hint="sweep the learning rate first, then the rest at the best one",
        )
    return Grid(task, choices)


def _read(words: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    key = ""
    for word in words.split(","):
        name, equals, value = word.partition("=")
        if word.strip() == AUTO:
            found[AUTO] = []
            continue
        if equals:
            key = name.strip().replace("-", "_")
            found.setdefault(key, [])
        value = value if equals else name
        if not key or not value.strip():
            raise ConfigError(
                f"--sweep {words!r} is no list of values.",
                code="invalid_sweep",
                param="sweep",
                hint="--sweep lr=1e-4,3e-4 --sweep rank=4,8, or --sweep auto",
            )
        if value.strip() not in found[key]:
            found[key].append(value.strip())
    for name in found:
        if name in OF_DATA or name in ("name", "from", "parent"):
            raise ConfigError(
                f"{name} cannot be swept: all are compared on the same rows.", code="invalid_sweep", param="sweep"
            )
    return found


def _rates(task: Task, hidden: int) -> list[float]:
    middle = task.lr or default_learning_rate(catalog.method(task.method), hidden)
    return [float(f"{middle * times:.2g}") for times in _AROUND]
