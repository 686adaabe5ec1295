"""Publishing: from files to a version, so that a crash at any moment leaves whole versions only.

    1  write the files to private staging, fsync each
    2  validate them there
    3  hash them; the manifest's digest is the version's
    4  link them into the store by digest, fsync its folders; the manifest too
    5  one transaction: blob rows, the next number, the version and, for the first one, `champion`
    6  commit, drop the staging

Bytes before rows: whatever dies before 6 leaves files that nothing refers to, and gc takes them after a day.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.digests import canonical_json, digest_file
from umbel.core.errors import AdapterRefused, Conflict, NotFound, Unavailable
from umbel.core.manifest import Manifest, ManifestFile
from umbel.core.names import CHAMPION, AdapterRef
from umbel.registry import blobs, lookup
from umbel.registry.aliases import move
from umbel.registry.audit import note
from umbel.registry.convert import LOADED
from umbel.registry.convert import version as to_version
from umbel.registry.database import ATTEMPTS, Database
from umbel.registry.draft import Draft, Source, check_files
from umbel.registry.failpoints import Point, reach
from umbel.registry.models import AdapterRow, AliasRow, RunRow, VersionFileRow, VersionMetricRow, VersionRow
from umbel.registry.records import SERVABLE, Version, VersionState
from umbel.registry.store import BlobStore, disk, sync, write_synced
from umbel.registry.tags import put_tags

Validator = Callable[[Path], None]
"""Looks at a folder with the adapter's files; raises AdapterRefused."""


class Publisher:
    def __init__(self, database: Database, store: BlobStore) -> None:
        self.database = database
        self.store = store

    def publish(self, draft: Draft, files: Mapping[str, Source], validate: Validator | None) -> Version:
        """The new version, or the one with the same digest where that was published before."""
        reach(Point.PUBLISH_BEGUN)
        check_files(files)
        with self.database.read() as session:  # fails before any byte is written, where it can
            _check_adapter(session, draft)
        with self.store.staged() as staging:
            reach(Point.PUBLISH_STAGING_MADE)
            folder = self._stage(staging, files)
            if validate is not None:
                validate(folder)
            reach(Point.PUBLISH_VALIDATED)
            manifest = draft.manifest(_hash(folder, files))
            write_synced(staging / "manifest.json", canonical_json(manifest.model_dump(mode="json", by_alias=True)))
            reach(Point.PUBLISH_HASHED)
            version = self._keep(draft, manifest, staging)
            reach(Point.PUBLISH_COMMITTED)
        reach(Point.PUBLISH_DONE)
        return version

    def _stage(self, staging: Path, files: Mapping[str, Source]) -> Path:
        folder = staging / "files"
        with disk(self.store.root):
            folder.mkdir()
            for path, source in sorted(files.items()):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                write_synced(folder / path, source)
                reach(Point.PUBLISH_FILE_WRITTEN)
            sync(folder)
        reach(Point.PUBLISH_STAGED)
        return folder

    def _keep(self, draft: Draft, manifest: Manifest, staging: Path) -> Version:
        for _ in range(ATTEMPTS):
            sizes = self._put(manifest, staging)
            reach(Point.PUBLISH_STORED)
            try:
                return self.database.transact(partial(self._record, draft, manifest, sizes))
            except blobs.BlobGone:
                continue
        raise Unavailable(
            "gc kept removing the files of this publish.", code="store_busy", hint="try again", retry_after=1.0
        )

    def _put(self, manifest: Manifest, staging: Path) -> dict[str, int]:
        """Links every file into the store; returns their sizes by digest."""
        for file in manifest.files:
            self.store.put(staging / "files" / file.path, file.digest)
        text = staging / "manifest.json"
        self.store.put(text, manifest.digest())
        sizes = {file.digest: file.bytes for file in manifest.files}
        return sizes | {manifest.digest(): text.stat().st_size}

    def _record(self, draft: Draft, manifest: Manifest, sizes: dict[str, int], session: Session) -> Version:
        adapter = _adapter(session, draft)
        reach(Point.PUBLISH_ADAPTER_ROW)
        blobs.record(session, self.store, sizes)
        reach(Point.PUBLISH_BLOB_ROWS)
        row = _same(session, adapter, manifest)
        if row is None or row.state == VersionState.DELETED:
            row = _revive(session, row, manifest) if row else _add(session, adapter, draft, manifest)
            note(session, draft.actor, "publish", f"{adapter.name}:{row.number}", digest=row.digest)
            reach(Point.PUBLISH_VERSION_ROW)
            if draft.crown:
                _crown(session, adapter, row, draft.actor)
            reach(Point.PUBLISH_CHAMPION)
        session.flush()
        session.expire_all()
        version = to_version(session.scalars(select(VersionRow).where(VersionRow.id == row.id).options(*LOADED)).one())
        reach(Point.PUBLISH_BEFORE_COMMIT)
        return version


def _hash(folder: Path, files: Mapping[str, Source]) -> tuple[ManifestFile, ...]:
    return tuple(
        ManifestFile(path=path, digest=digest_file(folder / path), bytes=(folder / path).stat().st_size)
        for path in files
    )


def _check_adapter(session: Session, draft: Draft) -> None:
    adapter = session.scalar(select(AdapterRow).where(AdapterRow.name == draft.name))
    if adapter is not None:
        _check_backbone(session, adapter, draft.backbone)


def _check_backbone(session: Session, adapter: AdapterRow, fingerprint: str) -> None:
    """Versions may each have a backbone of their own, where all were trained from one root: they answer one question
    and are compared with each other."""
    if adapter.removed_at is not None or adapter.backbone == fingerprint:
        return
    if lookup.root_backbone(session, adapter.backbone) != lookup.root_backbone(session, fingerprint):
        raise Conflict(
            f"{adapter.name!r} is bound to the backbone {adapter.backbone}, this version was made for {fingerprint}.",
            code="backbone_mismatch",
            hint="publish it under another name, or train it on that backbone",
        )


def _adapter(session: Session, draft: Draft) -> AdapterRow:
    """The adapter's row, locked; made if this is its first version."""
    if lookup.claim_name(session, draft.name, "adapter"):
        return _new_adapter(session, draft)
    adapter = lookup.adapter_row(session, draft.name, lock=True)
    _check_backbone(session, adapter, draft.backbone)
    adapter.backbone, adapter.removed_at = draft.backbone, None
    if draft.description is not None and not adapter.description:
        adapter.description = draft.description  # else its champion's: a later version's own is in its contract
    put_tags(session, adapter, draft.tags)
    return adapter


def _new_adapter(session: Session, draft: Draft) -> AdapterRow:
    adapter = AdapterRow(
        name=draft.name,
        description=draft.description if draft.description is not None else draft.contract.description,
        backbone=draft.backbone,
        last_number=0,
        created_by=draft.actor,
        created_at=now_ms(),
    )
    session.add(adapter)
    session.flush()
    put_tags(session, adapter, draft.tags)
    return adapter


def _same(session: Session, adapter: AdapterRow, manifest: Manifest) -> VersionRow | None:
    same = select(VersionRow).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == manifest.digest())
    return session.scalar(same)


def _revive(session: Session, row: VersionRow, manifest: Manifest) -> VersionRow:
    """A deleted version comes back with its number, since its bytes are here again."""
    row.state, row.reason, row.state_at = VersionState.READY, "published again", now_ms()
    _add_files(session, row, manifest)
    return row


def _add(session: Session, adapter: AdapterRow, draft: Draft, manifest: Manifest) -> VersionRow:
    adapter.last_number += 1
    row = VersionRow(
        adapter_id=adapter.id,
        number=adapter.last_number,
        digest=manifest.digest(),
        weights_sha256=manifest.weights_sha256,
        method=draft.method,
        output_head=draft.contract.output_head,
        backbone=draft.backbone,
        config=dict(draft.config),
        contract=draft.contract.model_dump(mode="json"),
        state=VersionState.READY,
        state_at=now_ms(),
        run_id=_run_id(session, draft.run),
        parent_id=_parent_id(session, draft.parent),
        dataset=draft.dataset,
        seed=draft.seed,
        n_params=draft.n_params,
        bytes=manifest.bytes,
        card=draft.card,
        code_version=draft.code_version,
        created_by=draft.actor,
        created_at=now_ms(),
    )
    session.add(row)
    session.flush()
    _add_files(session, row, manifest)
    session.add_all(VersionMetricRow(version_id=row.id, key=key, value=value) for key, value in draft.metrics.items())
    return row


def _add_files(session: Session, row: VersionRow, manifest: Manifest) -> None:
    kept = set(session.scalars(select(VersionFileRow.path).where(VersionFileRow.version_id == row.id)))
    session.add_all(
        VersionFileRow(version_id=row.id, path=file.path, digest=file.digest, bytes=file.bytes)
        for file in manifest.files
        if file.path not in kept
    )


def _crown(session: Session, adapter: AdapterRow, row: VersionRow, actor: str) -> None:
    """The first version that can answer becomes champion; where there is another, somebody has to decide."""
    others = select(VersionRow.id).where(
        VersionRow.adapter_id == adapter.id, VersionRow.state.in_(SERVABLE), VersionRow.id != row.id
    )
    crowned = session.get(AliasRow, (adapter.id, CHAMPION)) is not None
    if not crowned and session.scalar(others.limit(1)) is None:
        move(session, adapter, CHAMPION, row.number, kind="set", actor=actor, reason="first version")


def _run_id(session: Session, run: str | None) -> str | None:
    if run is not None and session.get(RunRow, run) is None:
        raise NotFound(f"there is no run {run!r}.", code="run_not_found", hint="umbel runs list")
    return run


def _parent_id(session: Session, parent: str | None) -> int | None:
    if parent is None:
        return None
    ref = AdapterRef.parse(parent)
    if ref.number is None and ref.digest is None:
        raise AdapterRefused(
            f"the parent {parent!r} may move.", code="invalid_parent", hint="name its number or digest: name:3"
        )
    return lookup.version_row(session, ref).id
