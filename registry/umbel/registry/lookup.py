"""From what a user wrote to rows, or to an error that says what is missing and how to find what there is."""

from typing import TypeVarTuple

from sqlalchemy import Select, and_, select
from sqlalchemy.orm import Session

from umbel.core.errors import Conflict, NotFound, Unavailable
from umbel.core.names import CHAMPION, LATEST, AdapterRef, nearest
from umbel.core.protocols import VersionRef
from umbel.registry.convert import LOADED
from umbel.registry.models import AdapterRow, AliasRow, BackboneRow, NameRow, VersionRow
from umbel.registry.records import SERVABLE, Standing, VersionState
from umbel.registry.trail import before, trail_of

Ts = TypeVarTuple("Ts")


def claim_name(session: Session, name: str, kind: str) -> bool:
    """Takes a name for one kind of thing; False if it is this kind's already. Raises Conflict if it is another's."""
    owner = session.get(NameRow, name)
    if owner is None:
        session.add(NameRow(name=name, kind=kind))
        session.flush()
        return True
    if owner.kind != kind:
        raise Conflict(
            f"{name!r} names {_article(owner.kind)}; adapters, backbones and experiments share one name space.",
            code="name_taken",
            hint="choose another name",
        )
    return False


def adapter_row(session: Session, name: str, *, lock: bool = False) -> AdapterRow:
    """``lock``: hold the row until the transaction ends, so that numbers and aliases move one after another."""
    statement = select(AdapterRow).where(AdapterRow.name == name)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise _no_adapter(session, name)
    return row


def root_backbone(session: Session, fingerprint: str) -> str:
    """The backbone that this one goes back to, training after training; itself where it is a root or not known."""
    parent = select(BackboneRow.parent).where(BackboneRow.fingerprint == fingerprint)
    while (before := session.scalar(parent)) is not None:
        fingerprint = before
        parent = select(BackboneRow.parent).where(BackboneRow.fingerprint == fingerprint)
    return fingerprint


def version_row(session: Session, ref: AdapterRef) -> VersionRow:
    """The version in whatever state, but deleted; with everything that ``convert.version`` needs."""
    row = session.scalars(_matching(select(VersionRow), ref).options(*LOADED)).one_or_none()
    if row is None:
        raise _missing(session, ref)
    refuse_deleted(ref, row.state)
    return row


def resolved(session: Session, ref: AdapterRef) -> Standing:
    """A version that may answer; raises as ``AdapterSource.resolve`` says."""
    columns = select(VersionRow.number, VersionRow.digest, VersionRow.state, VersionRow.reason, VersionRow.state_at)
    found = session.execute(_matching(columns, ref)).one_or_none()
    if found is None:
        raise _missing(session, ref)
    number, digest, state, reason, since = found
    refuse_deleted(ref, state)
    refuse_unservable(ref, number, digest, state, reason, back=_back(session, ref) if state not in SERVABLE else "")
    return Standing(VersionRef(ref.name, number, digest), VersionState(state), reason, since)


def refuse_deleted(ref: AdapterRef, state: str) -> None:
    if state == VersionState.DELETED:
        raise NotFound(
            f"{ref} was deleted.", code="version_not_found", hint=f"umbel adapters show {ref.name} lists what is left"
        )


def refuse_unservable(
    ref: AdapterRef, number: int, digest: str, state: str, reason: str | None, *, back: str = ""
) -> None:
    """``back``: the command that points the alias of ``ref`` at a version that may answer, where there is one."""
    if state in SERVABLE or (state == VersionState.YANKED and ref.digest):
        return
    version = f"{ref.name}:{number}"
    which = version if str(ref) == version else f"{ref} means {version}, which"
    because = f": {reason}" if reason else ""
    if state == VersionState.YANKED:
        raise Unavailable(
            f"{which} was yanked{because}.",
            code="version_yanked",
            hint=f"{back}umbel adapters unyank {version}; its digest loads it all the same: {ref.name}@{digest}",
        )
    raise Unavailable(
        f"{which} is {state}{because}.",
        code="version_not_ready",
        hint=f"umbel adapters show {ref.name}",
    )


def _back(session: Session, ref: AdapterRef) -> str:
    """``umbel rollback mood for mood:2, or``; empty for a version's own number, and where nothing is before."""
    if ref.number is not None or ref.digest is not None or ref.alias == LATEST:
        return ""
    adapter, alias = adapter_row(session, ref.name), ref.alias or CHAMPION
    number = before(session, adapter, trail_of(session, adapter, alias))
    which = "" if alias == CHAMPION else f" --alias {alias}"
    return "" if number is None else f"umbel rollback {ref.name}{which} for {ref.name}:{number}, or "


def _matching(statement: Select[*Ts], ref: AdapterRef) -> Select[*Ts]:
    statement = statement.join(AdapterRow, VersionRow.adapter_id == AdapterRow.id).where(AdapterRow.name == ref.name)
    if ref.number is not None:
        return statement.where(VersionRow.number == ref.number)
    if ref.digest is not None:
        return statement.where(VersionRow.digest == ref.digest)
    if ref.alias == LATEST:
        return statement.where(VersionRow.state.in_(SERVABLE)).order_by(VersionRow.number.desc()).limit(1)
    pointing = and_(AliasRow.adapter_id == VersionRow.adapter_id, AliasRow.number == VersionRow.number)
    return statement.join(AliasRow, pointing).where(AliasRow.alias == (ref.alias or CHAMPION))


def removed(name: str) -> NotFound:
    return NotFound(
        f"the adapter {name!r} was removed.",
        code="adapter_not_found",
        hint="publish it again, or umbel adapters list",
    )


def _missing(session: Session, ref: AdapterRef) -> NotFound:
    if adapter_row(session, ref.name).removed_at is not None:
        return removed(ref.name)
    show = f"umbel adapters show {ref.name} lists versions and aliases"
    if ref.number is not None or ref.digest is not None or ref.alias == LATEST:
        return NotFound(f"there is no {ref}.", code="version_not_found", hint=show)
    if ref.alias is None:
        newest = session.scalar(_matching(select(VersionRow.number), AdapterRef(ref.name, alias=LATEST)))
        way = "" if newest is None else f"umbel promote {ref.name}:{newest} makes one; or ask {ref.name}:{newest}; "
        return NotFound(
            f"no version answers to the bare name {ref.name!r} yet.", code="alias_not_found", hint=f"{way}{show}"
        )
    return NotFound(
        f"{ref.name!r} has no alias {ref.alias!r}.", code="alias_not_found", hint=f"{show}; umbel alias set moves one"
    )


def _no_adapter(session: Session, name: str) -> NotFound:
    owner = session.get(NameRow, name)
    if owner is not None and owner.kind != "adapter":
        return NotFound(
            f"{name!r} is {_article(owner.kind)}, not an adapter.",
            code="adapter_not_found",
            hint="umbel adapters list shows every adapter",
        )
    near = "a version is written with its adapter's name, as mood:3; " if name.isdecimal() else _nearest(session, name)
    return NotFound(
        f"there is no adapter {name!r}.",
        code="adapter_not_found",
        hint=f"{near}umbel adapters list shows every adapter",
    )


def _nearest(session: Session, name: str) -> str:
    """``did you mean mood?`` where an adapter, or whatever else shares the name space, is called much like it."""
    named = select(NameRow.name, NameRow.kind).outerjoin(AdapterRow, AdapterRow.name == NameRow.name)
    kinds = {row.name: row.kind for row in session.execute(named.where(AdapterRow.removed_at.is_(None)))}
    near = nearest(name, kinds)
    if near is None:
        return ""
    return f"did you mean {near if kinds[near] == 'adapter' else f'the {kinds[near]} {near}'}? "


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
