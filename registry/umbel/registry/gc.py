"""Garbage collection: what no version needs goes, after a day's grace and only when asked to.

A blob is unlinked inside a transaction that holds its row and has looked for users once more. A publish that wants the
same blob waits for that row and then looks for the file, so either it finds it or it puts it again: there is no
moment at which a version could be committed without its bytes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import ColumnElement, Select, delete, or_, select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.folders import folders_in
from umbel.registry.audit import note, who
from umbel.registry.database import Database, upsert
from umbel.registry.failpoints import Point, reach
from umbel.registry.fetch import drop
from umbel.registry.models import BlobRow, VersionFileRow, VersionRow
from umbel.registry.records import GcReport, VersionState
from umbel.registry.store import BlobStore, held

GRACE_MS = 24 * 3600 * 1000
"""How long a file stays after it was last put, and a deleted version's bytes after its deletion."""


@dataclass(frozen=True, slots=True)
class Collector:
    database: Database
    store: BlobStore
    cache: Path
    """Versions' folders."""
    ready: Path
    """Versions as servers' slots take them."""

    def collect(self, *, dry_run: bool = True, grace_ms: int = GRACE_MS, actor: str | None = None) -> GcReport:
        """Says what nothing needs and, unless ``dry_run``, removes it. Safe beside publishes and other gcs."""
        before, warnings = now_ms() - grace_ms, list[str]()
        garbage = self._garbage(before)
        sizes = {digest: _size(self.store.path(digest)) for digest in garbage}
        staging, cached = self._dead_staging(before), self._dead_cache()
        if not dry_run:
            for digest in garbage:
                warnings += self.database.transact(partial(self._sweep, digest, before))
                reach(Point.GC_COMMITTED)
            for folder in staging:
                self.store.drop_dead(folder)
            for folder in cached:
                drop(folder)
            for path in self._dead_ready():
                path.unlink(missing_ok=True)
            self._note(garbage, sum(sizes.values()), who(actor))
        return GcReport(
            dry_run=dry_run,
            blobs=tuple(garbage),
            bytes=sum(sizes.values()),
            staging=tuple(folder.name for folder in staging),
            cached=tuple(folder.name for folder in cached),
            warnings=tuple(warnings),
        )

    def _garbage(self, before: int) -> list[str]:
        with self.database.read() as session:
            rows = set(session.scalars(select(BlobRow.digest)))
            needed = set(session.scalars(_needed(before)))
            needed |= set(session.scalars(select(VersionRow.digest).where(_kept(before))))
        found = rows | set(self.store.digests())
        return sorted(digest for digest in found - needed if _older(self.store.path(digest), before))

    def _sweep(self, digest: str, before: int, session: Session) -> list[str]:
        """Removes one blob if it is garbage still; returns warnings."""
        path = self.store.path(digest)
        _lock(session, digest, _size(path))
        used = session.scalar(_needed(before).where(VersionFileRow.digest == digest).limit(1))
        made = session.scalar(select(VersionRow.id).where(VersionRow.digest == digest, _kept(before)).limit(1))
        if used is not None or made is not None or not _older(path, before):
            return []
        session.execute(delete(VersionFileRow).where(VersionFileRow.digest == digest))  # of versions long deleted
        session.execute(delete(BlobRow).where(BlobRow.digest == digest))
        there = self.store.remove(digest)
        reach(Point.GC_UNLINKED)
        reach(Point.GC_BEFORE_COMMIT)
        return [] if there else [f"{digest} was gone already"]

    def _dead_staging(self, before: int) -> list[Path]:
        leftovers = [folder for folder in sorted(self.store.staging.iterdir()) if _older(folder, before)]
        return [folder for folder in leftovers if not held(folder)]

    def _dead_cache(self) -> list[Path]:
        kept = self._live()
        return [folder for folder in folders_in(self.cache) if folder.name not in kept]

    def _dead_ready(self) -> list[Path]:
        kept = self._live()
        return [path for path in self.ready.glob("??/*-*") if path.name.partition("-")[0] not in kept]

    def _live(self) -> set[str]:
        """Digests, without their algorithm."""
        with self.database.read() as session:
            live = session.scalars(select(VersionRow.digest).where(VersionRow.state != VersionState.DELETED))
            return {digest.removeprefix("sha256:") for digest in live}

    def _note(self, garbage: list[str], size: int, actor: str) -> None:
        with self.database.write() as session:
            note(session, actor, "gc", "store", blobs=len(garbage), bytes=size)


def _kept(before: int) -> ColumnElement[bool]:
    return or_(VersionRow.state != VersionState.DELETED, VersionRow.state_at > before)


def _needed(before: int) -> Select[str]:
    return (
        select(VersionFileRow.digest).join(VersionRow, VersionRow.id == VersionFileRow.version_id).where(_kept(before))
    )


def _lock(session: Session, digest: str, size: int) -> None:
    """Takes the blob's row, making one for a file that a dead publish left without."""
    row = {"digest": digest, "bytes": max(size, 1), "state": "present", "created_at": now_ms()}
    upsert(session, BlobRow, row, keep=row)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _older(path: Path, before: int) -> bool:
    """Whether it was last put before that time; what is not there is old."""
    try:
        return path.stat().st_mtime * 1000 < before
    except FileNotFoundError:
        return True
