"""From a digest to a folder that can be loaded: names from the manifest, bytes from the store, checked each time.

The folder's files are hard links to the blobs, so they cost no space; where the cache lies on another disk, copies.
"""

import os
import shutil
from pathlib import Path

from sqlalchemy import select

from umbel.core.courtesy import give_way
from umbel.core.digests import digest_file
from umbel.core.errors import Conflict, NotFound, Unavailable
from umbel.core.folders import building, only_one
from umbel.core.manifest import CARD_FILE, Manifest, ManifestFile
from umbel.core.protocols import StoredAdapter
from umbel.registry import blobs
from umbel.registry.convert import LOADED, version
from umbel.registry.database import Database
from umbel.registry.models import VersionRow
from umbel.registry.records import Version, VersionState
from umbel.registry.store import BlobStore, write_synced


class Fetcher:
    def __init__(self, database: Database, store: BlobStore, cache: Path) -> None:
        self.database = database
        self.store = store
        self.cache = cache

    def fetch(self, digest: str) -> StoredAdapter:
        """See ``AdapterSource.fetch``. Where several adapters have the digest, the oldest one gives the name."""
        found = self._version(digest)
        give_way()
        manifest = found.manifest
        if manifest.digest() != digest:
            raise _corrupt(found, "its manifest")
        folder = self.folder(digest)
        if not _intact(folder, manifest):
            with only_one(folder):
                if not _intact(folder, manifest):
                    self._rebuild(folder, found)
        return StoredAdapter(found.ref, manifest, folder)

    def export(self, digest: str, target: Path, card: str | None) -> Path:
        """A copy of the files, with the card as README.md, for use elsewhere."""
        if target.exists() and any(target.iterdir()):
            raise Conflict(f"{target} is not empty.", code="folder_exists", hint="choose another folder")
        shutil.copytree(self.fetch(digest).folder, target, dirs_exist_ok=True)
        target.chmod(0o755)
        if card is not None:
            write_synced(target / CARD_FILE, card.encode())
        for path in target.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    def folder(self, digest: str) -> Path:
        return self.cache / digest.removeprefix("sha256:")

    def _version(self, digest: str) -> Version:
        statement = select(VersionRow).where(VersionRow.digest == digest, VersionRow.state != VersionState.DELETED)
        with self.database.read() as session:
            row = session.scalars(statement.order_by(VersionRow.id).limit(1).options(*LOADED)).one_or_none()
            if row is None:
                raise NotFound(
                    f"no version has the digest {digest}.", code="version_not_found", hint="umbel adapters list"
                )
            return version(row)

    def _rebuild(self, folder: Path, found: Version) -> None:
        drop(folder)
        for file in found.files:
            if not self.store.sound(file.digest):
                blobs.quarantine(self.database, self.store, file.digest)
                raise _corrupt(found, file.path)
        with building(folder) as fresh:
            for file in found.files:
                _place(self.store.path(file.digest), fresh / file.path)
                give_way()
        _protect(folder)


def drop(folder: Path) -> None:
    """Removes a materialised folder, which is read-only, if it is there."""
    if folder.is_dir():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def _intact(folder: Path, manifest: Manifest) -> bool:
    return folder.is_dir() and all(_same_bytes(folder, file) for file in manifest.files)


def _same_bytes(folder: Path, file: ManifestFile) -> bool:
    path = folder / file.path
    return path.is_file() and digest_file(path) == file.digest


def _place(blob: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob, target)
    except OSError:  # another disk, or one that knows no hard links
        shutil.copyfile(blob, target)
        target.chmod(0o444)


def _protect(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            path.chmod(0o555)


def _corrupt(found: Version, what: str) -> Unavailable:
    return Unavailable(
        f"{what} of {found.ref} does not have the bytes that were published; it is in quarantine.",
        code="artifact_corrupt",
        hint=f"publish the same files again to heal it, or umbel rollback {found.name}",
    )
