"""The rows of the store's files. Whoever links or unlinks a file holds its row, which keeps publish and gc apart."""

from collections.abc import Iterable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.protocols import VersionRef
from umbel.registry.convert import LOADED, version_ref
from umbel.registry.database import Database, upsert
from umbel.registry.models import BlobRow, VersionFileRow, VersionRow
from umbel.registry.records import VersionState
from umbel.registry.store import BlobStore


class BlobGone(Exception):
    """gc unlinked a file between its ``put`` and its row; putting it again helps."""


def record(session: Session, store: BlobStore, sizes: dict[str, int]) -> None:
    """Rows for blobs that were just put. Raises BlobGone if one is not there any more.

    Their rows are locked from here to the commit, and gc unlinks only under the same lock. In the order of the
    digests, so that two publishers never wait for each other in a circle.
    """
    now = now_ms()
    for digest, size in sorted(sizes.items()):
        row = {"digest": digest, "bytes": size, "state": "present", "created_at": now, "verified_at": now}
        upsert(session, BlobRow, row, keep=("created_at",))
        if not store.has(digest, size):
            raise BlobGone(digest)


def quarantine(database: Database, store: BlobStore, digest: str) -> None:
    """Takes a blob with wrong bytes out of use; publishing the right bytes again heals every version that needs it."""
    store.quarantine(digest)
    with database.write() as session:
        session.execute(update(BlobRow).where(BlobRow.digest == digest).values(state="quarantined"))


def mark_sound(database: Database, digests: Iterable[str]) -> None:
    with database.write() as session:
        for digest in digests:
            session.execute(
                update(BlobRow).where(BlobRow.digest == digest).values(state="present", verified_at=now_ms())
            )


def users(session: Session, digest: str) -> list[VersionRef]:
    """The versions that need a blob: as one of their files, or as their manifest."""
    needs = select(VersionFileRow.version_id).where(VersionFileRow.digest == digest)
    statement = select(VersionRow).where(
        VersionRow.id.in_(needs) | (VersionRow.digest == digest), VersionRow.state != VersionState.DELETED
    )
    return [version_ref(row) for row in session.scalars(statement.options(*LOADED).order_by(VersionRow.id))]
