"""Rows to records: the only place that knows both. ``LOADED`` names what a row needs to have with it."""

from sqlalchemy.orm import joinedload, selectinload
from sqlalchemy.sql.base import ExecutableOption

from umbel.core.contract import Contract, OutputHead
from umbel.core.manifest import ManifestFile
from umbel.core.protocols import VersionRef
from umbel.registry.models import AliasEventRow, VersionRow
from umbel.registry.records import AliasEvent, Version, VersionState

LOADED: tuple[ExecutableOption, ...] = (
    joinedload(VersionRow.adapter),
    joinedload(VersionRow.parent).joinedload(VersionRow.adapter),
    selectinload(VersionRow.files),
    selectinload(VersionRow.metrics),
    selectinload(VersionRow.aliases),
)
"""For ``version()``: a fixed number of queries, however many versions are read."""


def version(row: VersionRow) -> Version:
    return Version(
        name=row.adapter.name,
        number=row.number,
        digest=row.digest,
        weights_sha256=row.weights_sha256,
        method=row.method,
        output_head=OutputHead(row.output_head),
        state=VersionState(row.state),
        reason=row.reason,
        backbone=row.backbone,
        run=row.run_id,
        parent=version_ref(row.parent) if row.parent else None,
        dataset=row.dataset,
        seed=row.seed,
        n_params=row.n_params,
        bytes=row.bytes,
        config=row.config,
        contract=Contract.model_validate(row.contract),
        files=tuple(ManifestFile(path=file.path, digest=file.digest, bytes=file.bytes) for file in row.files),
        metrics={metric.key: metric.value for metric in sorted(row.metrics, key=lambda metric: metric.key)},
        aliases=tuple(alias.alias for alias in row.aliases),
        card=row.card,
        code_version=row.code_version,
        created_by=row.created_by,
        created_at=row.created_at,
    )


def version_ref(row: VersionRow) -> VersionRef:
    """Needs ``adapter`` loaded."""
    return VersionRef(row.adapter.name, row.number, row.digest)


def alias_event(row: AliasEventRow, name: str) -> AliasEvent:
    return AliasEvent(
        name=name,
        alias=row.alias,
        kind=row.kind,
        origin=row.origin,
        target=row.target,
        actor=row.actor,
        reason=row.reason,
        evidence=row.evidence,
        at=row.at,
    )
