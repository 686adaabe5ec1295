"""Backbones that this home knows, by name and by fingerprint."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.errors import Conflict, NotFound
from umbel.core.names import check_name, meant
from umbel.registry import lookup
from umbel.registry.audit import note, who
from umbel.registry.database import Database
from umbel.registry.models import AdapterRow, BackboneRow, NameRow, VersionRow
from umbel.registry.records import Backbone, VersionState


class Backbones:
    def __init__(self, database: Database) -> None:
        self.database = database

    def register(
        self,
        *,
        name: str,
        fingerprint: str,
        source: str,
        config: Mapping[str, Any],
        licence: str | None = None,
        tokenizer_sha: str | None = None,
        chat_template_sha: str | None = None,
        parent: str | None = None,
        actor: str | None = None,
    ) -> Backbone:
        """Registering the same again is a no-op. Raises Conflict where the name has other weights (``name_taken``) or
        the weights have another name (``backbone_known``)."""
        wanted = Backbone(
            name=check_name(name, "backbone"),
            fingerprint=fingerprint,
            source=source,
            config=dict(config),
            licence=licence,
            tokenizer_sha=tokenizer_sha,
            chat_template_sha=chat_template_sha,
            parent=parent,
            created_at=now_ms(),
        )
        return self.database.transact(lambda session: _register(session, wanted, who(actor)))

    def get(self, name_or_fingerprint: str) -> Backbone:
        with self.database.read() as session:
            return _backbone(_row(session, name_or_fingerprint))

    def list(self) -> tuple[Backbone, ...]:
        with self.database.read() as session:
            return tuple(_backbone(row) for row in session.scalars(select(BackboneRow).order_by(BackboneRow.name)))

    def remove(self, name: str, *, actor: str | None = None) -> None:
        """Forgets it; raises Conflict (``backbone_in_use``) while adapters are bound to it. Touches no files."""
        with self.database.write() as session:
            row = _row(session, name)
            bound = (
                select(func.count(AdapterRow.id.distinct()))
                .join(VersionRow, VersionRow.adapter_id == AdapterRow.id)
                .where(VersionRow.backbone == row.fingerprint, VersionRow.state != VersionState.DELETED)
                .where(AdapterRow.removed_at.is_(None))
            )
            if count := session.execute(bound).scalar_one():
                raise Conflict(
                    f"{count} {'adapter is' if count == 1 else 'adapters are'} bound to {row.name!r}.",
                    code="backbone_in_use",
                    hint=f"umbel adapters list --backbone {row.name}, then remove those first",
                )
            session.delete(row)
            session.flush()
            session.execute(delete(NameRow).where(NameRow.name == row.name))
            note(session, who(actor), "backbone.remove", row.name, fingerprint=row.fingerprint)


def _register(session: Session, wanted: Backbone, actor: str) -> Backbone:
    known = session.scalar(select(BackboneRow).where(BackboneRow.fingerprint == wanted.fingerprint))
    if known is not None and known.name != wanted.name:
        raise Conflict(
            f"these weights are registered as {known.name!r} already.", code="backbone_known", hint="use that name"
        )
    if known is not None:
        return _backbone(known)
    if not lookup.claim_name(session, wanted.name, "backbone"):
        raise Conflict(
            f"{wanted.name!r} is a backbone with other weights.", code="name_taken", hint="choose another name"
        )
    session.add(BackboneRow(**asdict(wanted)))
    note(session, actor, "backbone.register", wanted.name, fingerprint=wanted.fingerprint)
    return wanted


def _row(session: Session, name_or_fingerprint: str) -> BackboneRow:
    either = or_(BackboneRow.name == name_or_fingerprint, BackboneRow.fingerprint == name_or_fingerprint)
    row = session.scalar(select(BackboneRow).where(either))
    if row is None:
        known = session.scalars(select(BackboneRow.name))
        raise NotFound(
            f"there is no backbone {name_or_fingerprint!r}.",
            code="backbone_not_found",
            hint=f"{meant(name_or_fingerprint, known)}umbel backbones list; umbel pull backbone brings one",
        )
    return row


def _backbone(row: BackboneRow) -> Backbone:
    return Backbone(
        name=row.name,
        fingerprint=row.fingerprint,
        source=row.source,
        licence=row.licence,
        config=row.config,
        tokenizer_sha=row.tokenizer_sha,
        chat_template_sha=row.chat_template_sha,
        parent=row.parent,
        created_at=row.created_at,
    )
