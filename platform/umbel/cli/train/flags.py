"""Task files and flags of ``umbel train``. Every key of a task file is a flag, the method's own options too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.cli.opened import open_registry
from umbel.core.errors import UsageError

if TYPE_CHECKING:
    from umbel.adapters.adapter import Adapter
    from umbel.backbone.backbone import Backbone
    from umbel.registry.registry import Registry
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
        return _checked([task_of({}, flags=flags, inherit=inherit)])
    if len(files) > 1 and "name" in flags:
        raise UsageError("--name names one adapter, but there are several task files.", param="name")
    return _checked([read_task(file, flags, inherit=inherit) for file in files])


def _checked(tasks: "list[Task]") -> "list[Task]":
    """Also that a task which trains the backbone itself is the only one."""
    if len(tasks) > 1 and (own := next((task for task in tasks if task.selection.tunes), None)):
        raise UsageError(
            f"{own.name} trains the backbone's own tensors (train = {own.train!r}), so it shares none with others.",
            code="trains_alone",
            hint="train it by itself",
        )
    return _gates_checked(tasks)


def _gates_checked(tasks: "list[Task]") -> "list[Task]":
    """Raises UsageError for a gate on a metric that will not be measured: now, not after the training."""
    from umbel.core.gate import parse_gate

    for task in tasks:
        if task.gate is not None:
            from umbel.evaluation.gates import check_metrics

            check_metrics(parse_gate(task.gate), task.output_head)
    return _parents_checked(tasks)


def _parents_checked(tasks: "list[Task]") -> "list[Task]":
    """Raises NotFound for a ``parent`` that is no version, before a run is made of its task."""
    parents = [task.parent for task in tasks if task.parent is not None]
    if parents:
        with open_registry() as registry:
            for parent in parents:
                registry.resolve(parent)
    return tasks


def inherit(version: str) -> dict[str, Any]:
    """What a version was made with, as options of a task that continues from it under the same name."""
    with open_registry() as registry:
        ref = registry.resolve(version)
        manifest = registry.fetch(ref.digest).manifest
    contract, head = manifest.contract, manifest.config["head"]
    options = {
        "parent": str(ref),
        "name": ref.name,
        "task": contract.output_head.value,
        "method": manifest.method,
        "labels": contract.labels,
        "template": contract.template,
        "add_special_tokens": contract.add_special_tokens,
        "max_length": contract.max_length,
        "truncation_side": contract.truncation_side,
        "head_depth": head["depth"],
        "head_width": head["width"],
        "head_activation": head["activation"],
    }
    return {**options, **{key: value for key, value in manifest.config["method"].items() if value is not None}}


def load_parents(registry: "Registry", tasks: "Sequence[Task]", backbone: "Backbone") -> "dict[str, Adapter]":
    """The adapters that tasks continue from, by the task's name. Raises AdapterRefused for another backbone's."""
    from umbel.adapters.peft_io import load_adapter
    from umbel.cli.eval import check_backbone

    found = {}
    for task in tasks:
        if task.parent is not None:
            stored = registry.fetch(registry.resolve(task.parent).digest)
            check_backbone(stored.manifest.backbone, backbone, task.parent)
            found[task.name] = load_adapter(stored, backbone.shape)
    return found
