"""Whether every version is whole: its rows give its digest, its files are there and, if asked, have their bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from umbel.core.digests import canonical_json
from umbel.registry import blobs
from umbel.registry.convert import LOADED, version
from umbel.registry.database import Database
from umbel.registry.models import AdapterRow, AliasRow, VersionRow
from umbel.registry.records import Problem, VerifyReport, Version, VersionState
from umbel.registry.store import BlobStore

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Verifier:
    database: Database
    store: BlobStore

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """``deep`` reads every byte and quarantines what is not what it should be."""
        problems = [*self._database(), *self._aliases()]
        sizes: dict[str, int] = {}
        paths: dict[str, str] = {}
        count = 0
        for found in self._versions():
            count += 1
            problems += _manifest(found)
            sizes[found.digest] = len(canonical_json(found.manifest.model_dump(mode="json", by_alias=True)))
            paths[found.digest] = "its manifest"
            sizes |= {file.digest: file.bytes for file in found.files}
            paths |= {file.digest: file.path for file in found.files}
        bad = {digest: code for digest, size in sizes.items() if (code := self._check(digest, size, deep))}
        problems += [self._problem(digest, code, paths[digest]) for digest, code in bad.items()]
        if deep:
            blobs.mark_sound(self.database, sizes.keys() - bad.keys())
        return VerifyReport(
            versions=count, blobs=len(sizes), bytes=sum(sizes.values()), deep=deep, problems=tuple(problems)
        )

    def _versions(self) -> Iterator[Version]:
        last = 0
        while True:
            live = (VersionRow.id > last) & (VersionRow.state != VersionState.DELETED)
            statement = select(VersionRow).where(live).order_by(VersionRow.id).limit(_BATCH).options(*LOADED)
            with self.database.read() as session:
                rows = session.scalars(statement).all()
                yield from [version(row) for row in rows]
            if not rows:
                return
            last = rows[-1].id

    def _check(self, digest: str, size: int, deep: bool) -> str | None:
        """The code of what is wrong with a blob."""
        if not self.store.path(digest).exists():
            return "artifact_missing"
        if self.store.has(digest, size) and (not deep or self.store.sound(digest)):
            return None
        if deep:
            blobs.quarantine(self.database, self.store, digest)
        return "artifact_corrupt"

    def _problem(self, digest: str, code: str, path: str) -> Problem:
        with self.database.read() as session:
            users = tuple(str(ref) for ref in blobs.users(session, digest))
        what = "is not in the store" if code == "artifact_missing" else "does not have its bytes"
        message = f"{path} of {', '.join(users)} {what}; publish the same files again to heal it"
        return Problem(code=code, message=message, path=path, digest=digest, versions=users)

    def _database(self) -> list[Problem]:
        if not self.database.is_sqlite:
            return []  # PostgreSQL checks its own pages and keys
        with self.database.read() as session:
            found = [str(row[0]) for row in session.execute(text("PRAGMA integrity_check"))]
            found += [f"{row[0]} points nowhere" for row in session.execute(text("PRAGMA foreign_key_check"))]
        return [Problem(code="database_corrupt", message=message) for message in found if message != "ok"]

    def _aliases(self) -> list[Problem]:
        with self.database.read() as session:
            return [
                Problem(
                    code="alias_dangling",
                    message=f"{name}@{alias} points at the deleted {name}:{number}; umbel alias set moves it",
                    versions=(f"{name}:{number}",),
                )
                for name, alias, number in _dangling(session)
            ]


def _dangling(session: Session) -> list[tuple[str, str, int]]:
    statement = (
        select(AdapterRow.name, AliasRow.alias, AliasRow.number)
        .join(AliasRow, AliasRow.adapter_id == AdapterRow.id)
        .join(VersionRow, (VersionRow.adapter_id == AdapterRow.id) & (VersionRow.number == AliasRow.number))
        .where(VersionRow.state == VersionState.DELETED)
    )
    return [(name, alias, number) for name, alias, number in session.execute(statement)]


def _manifest(found: Version) -> list[Problem]:
    if found.manifest.digest() == found.digest:
        return []
    message = f"the rows of {found.ref} do not give its digest; restore the database from a backup"
    return [Problem(code="manifest_mismatch", message=message, digest=found.digest, versions=(str(found.ref),))]
