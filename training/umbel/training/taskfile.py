"""Tasks out of TOML files and command-line flags. A key that nobody knows is an error that names the nearest one."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from umbel.adapters import DEFAULT_METHOD, catalog
from umbel.core.errors import ConfigError, NotFound
from umbel.core.names import nearest
from umbel.training.task import Task

_PATHS = ("data", "validation", "test")


Inherit = Callable[[str], Mapping[str, Any]]
"""A version (``name:3``, ``name@alias``) to the options that a task continuing from it starts with."""


def read_task(path: Path, flags: Mapping[str, Any] | None = None, *, inherit: Inherit | None = None) -> Task:
    """A task file, with flags on top. Paths in the file are relative to the file's own folder."""
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(
            f"there is no task file {path}.",
            code="task_file_not_found",
            hint="check the path, or say it in flags: umbel train --name mood --data rows.jsonl --task classify",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error}).", code="invalid_toml") from None
    for key in _PATHS:
        if isinstance(options.get(key), str) and (path.parent / options[key]).exists():
            options[key] = str(path.parent / options[key])
    return task_of(options, flags=flags, where=str(path), inherit=inherit)


def task_of(
    options: Mapping[str, Any],
    *,
    flags: Mapping[str, Any] | None = None,
    where: str = "the command line",
    inherit: Inherit | None = None,
) -> Task:
    """A task from flat options: the task's own, and the method's beside them. ``flags`` stand on top of them.

    ``from`` names a version to continue from: what it was made with stands in for what is not given.

    Raises ConfigError: ``unknown_option`` with the nearest known name, ``missing_option``, ``invalid_option``. A wrong
    flag is told as one, whatever ``where`` the other options are.
    """
    flags = flags or {}
    options = {**options, **flags}
    if "from" in options and inherit is not None:
        given = {key: value for key, value in options.items() if key != "from"}
        options = {**inherit(str(options["from"])), **given}
    if options.get("train", "adapter") != "adapter":
        options = {"method": "none", **options}
        _check_no_method(str(options["train"]), str(options["method"]))
    method = str(options.get("method", DEFAULT_METHOD))
    own, theirs = known_options(), method_options(method)
    if unknown := next((key for key in options if key not in own and key not in theirs), None):
        raise _unknown(unknown, [*own, *theirs], method, None if unknown in flags else where)
    _check_whole(options, where)
    read = {
        key: _read(value, own.get(key, theirs.get(key)), key, None if key in flags else where)
        for key, value in options.items()
    }
    task = Task(
        **{key: value for key, value in read.items() if key in own},
        options={key: value for key, value in read.items() if key not in own},
    )
    catalog.configure(task.method, dict(task.options))  # wrong values are told now, not after loading a backbone
    return task


def _check_whole(options: Mapping[str, Any], where: str) -> None:
    """All that is missing at once."""
    missing = [key for key in _NEEDED if key not in options]
    if missing:
        raise ConfigError(
            f"{where} does not say the task's {' and '.join(missing)}.",
            code="missing_option",
            param=missing[0],
            hint=f"add {' '.join(f'--{key} {_NEEDED[key]}' for key in missing)}",
        )


_NEEDED = {"name": "mood", "data": "rows.jsonl", "task": "classify"}
"""What a task cannot be without, as an example has it."""


def _check_no_method(train: str, method: str) -> None:
    """Also LoRA, which a ``Task`` made in Python has by default."""
    if method != "none":
        raise ConfigError(
            f"train = {train!r} trains no adapter, so it has no method {method!r}.",
            param="method",
            hint="leave out --method and its options, or --train",
        )


def known_options() -> dict[str, Any]:
    """Name to type of everything a task has beside its method's options."""
    hints = get_type_hints(Task)
    return {field.name: hints[field.name] for field in fields(Task) if field.name != "options"}


def method_options(method: str) -> dict[str, Any]:
    """Name to type of a method's own options."""
    config = catalog.method(method).config
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def defaults() -> dict[str, Any]:
    """Name to default of a task's options that have one."""
    return {field.name: field.default for field in fields(Task) if field.default is not MISSING}


def _unknown(key: str, known: list[str], method: str, where: str | None) -> ConfigError:
    """``where`` is None for a flag."""
    elsewhere = next(iter(get_close_matches(key, _ELSEWHERE, n=1, cutoff=_ALIKE)), key)
    meant = _ELSEWHERE.get(elsewhere, key)
    near = meant if meant in known else nearest(key, known)
    written: Callable[[str], str] = repr if where is not None else _flag
    what = f"{where}: there is no option" if where is not None else "there is no flag"
    return ConfigError(
        f"{what} {written(key)} for method {method!r}.",
        code="unknown_option",
        param=key,
        hint=_of_other_method(meant, method, written)
        or (f"did you mean {written(near)}?" if near else f"docs/training.md tells all {len(known)}"),
    )


_ELSEWHERE = {
    "output_head": "task", "task_type": "task", "learning_rate": "lr", "num_train_epochs": "epochs",
    "num_epochs": "epochs", "max_steps": "steps", "train_batch_size": "batch_size",
    "per_device_train_batch_size": "micro_batch", "max_seq_length": "max_length", "max_grad_norm": "clip",
    "warmup_ratio": "warmup", "warmup_steps": "warmup", "early_stopping_patience": "patience",
    "early_stopping": "patience", "eval_steps": "eval_every", "fp16": "precision", "bf16": "precision",
    "mixed_precision": "precision", "load_in_4bit": "quantise", "load_in_8bit": "quantise", "quantize": "quantise",
    "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout",
    "target_modules": "targets", "num_virtual_tokens": "length", "use_rslora": "rslora", "use_dora": "dora",
}  # fmt: skip
"""What an option is called by PEFT, by transformers' ``TrainingArguments`` or by habit, and what it is called here."""
_ALIKE = 0.85
"""How like such a name a misspelt one is; options that mean something else are less."""


def _of_other_method(key: str, method: str, written: Callable[[str], str]) -> str | None:
    """Where it is another method's option: whose it is, and what this one has in its place."""
    owners = [name for name in catalog.methods() if key in method_options(name)]
    if not owners or method in owners:
        return None
    own = ", ".join(map(written, method_options(method))) or "no options"
    return f"{written(key)} is of {', '.join(owners)}; {method} has {own}"


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _read(value: Any, kind: Any, key: str, where: str | None) -> Any:
    """The value in its field's type; texts from the command line are split at commas where a list is wanted.

    ``where`` is None for a flag.
    """
    try:
        found = TypeAdapter(kind).validate_python(_unfold(value, kind) if isinstance(value, str) else value)
    except (ValidationError, json.JSONDecodeError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not JSON"
        said = said.replace("Input should", "it should")
        given = f"{_flag(key)} {value}" if where is None else f"{where}: {key} = {value!r}"
        raise ConfigError(f"{given}: {said}.", code="invalid_option", param=key) from None
    return found


def _unfold(text: str, kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    origins = {get_origin(each) for each in kinds}
    if tuple in origins:
        return [part.strip() for part in text.split(",") if part.strip()]
    if dict in origins:
        return json.loads(text)
    return text
