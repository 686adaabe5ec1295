"""Which files of a Hugging Face folder make a backbone, and why the others stay outside."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from umbel.backbone.config import read_config
from umbel.core.errors import UsageError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)
PATTERNS = (*TEXTS, SINGLE, INDEX, "model-*.safetensors")
"""What is asked of a hub: no ``.bin``, no ``.py``."""

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def gather(source: Path, into: Path, *, link: bool) -> None:
    """Copies (or hard-links, where the file system can) the files of a backbone, after checking that they are one.

    Raises UsageError: ``not_a_backbone`` (no config, tokenizer or weights; a shard missing or cut short) or
    ``unsafe_weights`` (only pickles). Raises ConfigError for a family that the decoder does not know.
    """
    weights = _weights(source)
    _check_config(source)
    _check_tokenizer(source)
    for name in weights:
        _check_header(source / name)
    for name in [*TEXTS, *weights]:
        if (source / name).is_file():
            _place((source / name).resolve(), into / name, link=link)


def _weights(source: Path) -> list[str]:
    if (source / INDEX).is_file():
        return [INDEX, *_shards(source)]
    if (source / SINGLE).is_file():
        return [SINGLE]
    pickles = sorted(path.name for pattern in _PICKLES for path in source.glob(pattern))
    if pickles:
        raise UsageError(
            f"{source} has its weights only as {pickles[0]}: a pickle, which can run any code when it is loaded.",
            code="unsafe_weights",
            hint="save it again as safetensors, with the program it came from: model.save_pretrained(folder)",
        )
    raise _not_one(source, f"neither {SINGLE} nor {INDEX}")


def _shards(source: Path) -> list[str]:
    names = sorted({str(name) for name in _json(source / INDEX).get("weight_map", {}).values()})
    if not names:
        raise _not_one(source, f"no weight_map in {INDEX}")
    for name in names:
        if not _SHARD.fullmatch(name):
            raise _not_one(source, f"a shard named {name!r} in {INDEX}")
        if not (source / name).is_file():
            raise _not_one(source, f"no {name}, which {INDEX} lists")
    return names


def _check_config(source: Path) -> None:
    if not (source / CONFIG).is_file():
        raise _not_one(source, f"no {CONFIG}")
    read_config(source)  # refuses, by name, what the decoder does not do


def _check_tokenizer(source: Path) -> None:
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise _not_one(source, "no tokenizer.json")


def _check_header(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # reads the header and checks the file's length against it
            empty = not list(file.keys())
    except SafetensorError as error:
        raise _not_one(path.parent, f"a broken {path.name} ({error})") from error
    if empty:
        raise _not_one(path.parent, f"no tensors in {path.name}")


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise _not_one(path.parent, f"{path.name} is not JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _not_one(source: Path, why: str) -> UsageError:
    return UsageError(
        f"{source} is not a backbone that can be pulled: {why}.",
        code="not_a_backbone",
        hint="give a folder that transformers' save_pretrained wrote, weights as safetensors, tokenizer included",
    )
