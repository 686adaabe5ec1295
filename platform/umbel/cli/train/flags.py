"""Task files and flags of ``umbel train``. Every key of a task file is a flag, the method's own options too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.core.errors import UsageError

if TYPE_CHECKING:
    from umbel.training.task import Task


def split_words(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """(task files, further flags) of what stands beside the flags that have help of their own.

    ``--rank 8``, ``--rank=8`` and ``--dora`` (true) are understood.
    """
    files: list[Path] = []
    flags: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            files.append(Path(word))
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = left.pop(0) if left and not left[0].startswith("--") and not left[0].endswith(".toml") else "true"
        flags[key.replace("-", "_")] = value
    return files, flags


def read_tasks(files: Sequence[Path], flags: Mapping[str, Any]) -> "list[Task]":
    """One task per file, or one of flags alone. Flags beside several files are meant for all of them.

    Raises ConfigError for unknown keys, UsageError where flags cannot be meant for all files.
    """
    from umbel.training.taskfile import read_task, task_of

    if not files:
        return [task_of(flags)]
    if len(files) > 1 and "name" in flags:
        raise UsageError("--name names one adapter, but there are several task files.", param="name")
    return [read_task(file, flags) for file in files]
