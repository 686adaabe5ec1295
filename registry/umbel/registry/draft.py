"""What is to be published, checked as far as words go; the weights are the validator's business."""

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.core.contract import Contract
from umbel.core.digests import DIGEST, canonical_json
from umbel.core.errors import AdapterRefused, UsageError
from umbel.core.manifest import CARD_FILE, WEIGHTS_FILE, Manifest, ManifestFile, check_path
from umbel.core.names import check_name

Source = bytes | Path
"""The bytes of a file, or where they are."""

_ALLOWED = (".safetensors", ".json", ".txt")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_METHOD = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Everything about a version but its bytes and its number."""

    name: str
    method: str
    config: Mapping[str, Any]
    contract: Contract
    backbone: str
    description: str | None
    tags: Mapping[str, str]
    run: str | None
    parent: str | None
    dataset: str | None
    metrics: Mapping[str, float]
    card: str | None
    seed: int | None
    n_params: int | None
    code_version: str | None
    actor: str
    crown: bool = True
    """Whether the first version becomes champion; not where a gate has refused it."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not _METHOD.fullmatch(self.method):
            raise UsageError(f"{self.method!r} cannot be a method.", code="invalid_method", hint="a word such as lora")
        for what, digest in (("backbone", self.backbone), ("dataset", self.dataset)):
            if digest is not None and not DIGEST.fullmatch(digest):
                raise UsageError(
                    f"the {what} {digest!r} is no digest.", code="invalid_digest", hint="sha256: and 64 hex digits"
                )
        check_metrics(self.metrics)

    def manifest(self, files: tuple[ManifestFile, ...]) -> Manifest:
        return Manifest(
            method=self.method,
            config=dict(self.config),
            contract=self.contract,
            backbone=self.backbone,
            files=tuple(sorted(files, key=lambda file: file.path)),
        )


def check_metrics(metrics: Mapping[str, float]) -> None:
    for key, value in metrics.items():
        if not 0 < len(key) <= 64 or not math.isfinite(value):
            raise UsageError(
                f"metric {key!r} = {value} cannot be kept.",
                code="invalid_metric",
                hint="a name of at most 64 characters and a finite number",
            )


def plain_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON gives back, so that what is hashed is what is read later (tuples become lists)."""
    try:
        plain = json.loads(canonical_json(dict(config)))
    except (TypeError, ValueError) as error:
        raise AdapterRefused(
            f"the config is not JSON: {error}.", code="invalid_config", hint="numbers, strings, lists and maps only"
        ) from error
    assert isinstance(plain, dict)
    return plain


def split_card(files: Mapping[str, Source], card: str | None) -> tuple[dict[str, Source], str | None]:
    """The files that the digest is made of, and the card: ``card``, or else the README.md among the files."""
    rest = dict(files)
    readme = rest.pop(CARD_FILE, None)
    if card is None and readme is not None:
        data = readme if isinstance(readme, bytes) else readme.read_bytes()
        card = data.decode("utf-8", errors="replace")
    return rest, card


def check_files(files: Mapping[str, Source]) -> None:
    """Names and kinds. Raises AdapterRefused with what to do about it."""
    for path, source in files.items():
        check_path(path)
        check_kind(path)
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
            raise AdapterRefused(f"{path} is empty.", code="empty_file", hint="write the adapter again")
    if WEIGHTS_FILE not in files:
        raise AdapterRefused(
            f"there is no {WEIGHTS_FILE} among {sorted(files)}.",
            code="missing_weights",
            hint="save the adapter with safe_serialization=True",
        )


def check_kind(path: str) -> None:
    """Raises AdapterRefused for a pickle, by name alone, and for what no adapter consists of."""
    suffix = Path(path).suffix.lower()
    if suffix in _PICKLES:
        raise AdapterRefused(
            f"{path} may be a pickle, which runs code when it is opened; the registry takes none.",
            code="unsafe_file",
            hint="load it where you trust it and save it with safetensors.torch.save_file",
        )
    if suffix not in _ALLOWED:
        raise AdapterRefused(
            f"{path} is not a kind of file that an adapter has.",
            code="unexpected_file",
            hint=f"leave it out; kinds that are kept: {', '.join(_ALLOWED)} and {CARD_FILE}",
        )


def code_version() -> str | None:
    try:
        return importlib.metadata.version("umbel")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return None
