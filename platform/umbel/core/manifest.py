"""The manifest of a version: what its digest is made of. No time, actor or run, so equal bytes are one version."""

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from umbel.core.contract import Contract
from umbel.core.digests import digest_json
from umbel.core.errors import AdapterRefused

MANIFEST_SCHEMA = 1
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
UMBEL_FILE = "umbel.json"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
"""Beside an exported version, no part of it: what was measured of these very bytes, by their digest."""
EXTRA_FILE = "umbel_extra.safetensors"
"""Tensors that PEFT's format cannot carry."""
ADAPTER_FILES = (WEIGHTS_FILE, EXTRA_FILE, CONFIG_FILE, UMBEL_FILE, CARD_FILE)
"""All that an adapter consists of."""
UPLOADED_FILES = (*ADAPTER_FILES, METRICS_FILE)
"""All that an adapter's folder may hold, as uploads have it."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def metrics_file(digest: str, metrics: Mapping[str, float]) -> bytes:
    """The content of ``METRICS_FILE``."""
    return (json.dumps({"digest": digest, "metrics": dict(metrics)}, indent=2) + "\n").encode()


def read_metrics(folder: Path) -> tuple[str, dict[str, float]] | None:
    """(digest, metrics) of the folder's ``METRICS_FILE``; None where there is none. Raises AdapterRefused."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        return str(found["digest"]), {str(key): float(value) for key, value in found["metrics"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise AdapterRefused(
            f"{METRICS_FILE} is not what umbel exports.", code="invalid_metrics", hint=f"leave {METRICS_FILE} out"
        ) from None


def check_path(path: str) -> str:
    """A relative POSIX path of plain segments; raises AdapterRefused (``unsafe_path``) for every trick."""
    segments = path.split("/")
    plain = all(_SEGMENT.fullmatch(segment) and ".." not in segment for segment in segments)
    if not plain or len(path.encode()) > 255 or unicodedata.normalize("NFC", path) != path:
        raise AdapterRefused(
            f"file name {path!r} is not allowed.", code="unsafe_path", hint="use plain relative names such as README.md"
        )
    return path


class ManifestFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    digest: Digest
    bytes: Annotated[int, Field(ge=0)]

    @field_validator("path")
    @classmethod
    def _safe(cls, path: str) -> str:
        return check_path(path)


class Manifest(BaseModel):
    """Everything that decides what a version answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    method: str
    config: dict[str, Any]
    contract: Contract
    backbone: Digest
    """Fingerprint of the backbone it was made for."""
    files: tuple[ManifestFile, ...]
    """Sorted by path; the card (README.md) is not among them, since words change no answer."""

    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json", by_alias=True))

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights file alone: equal for two versions that differ in words only."""
        return next(file.digest for file in self.files if file.path == WEIGHTS_FILE)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)
