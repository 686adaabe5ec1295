"""Versions: finding them, reading them, and taking them out of service. They are never edited."""

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from umbel.core.clock import now_ms
from umbel.core.errors import Conflict, UsageError
from umbel.core.names import AdapterRef
from umbel.core.protocols import VersionRef
from umbel.registry import convert, lookup
from umbel.registry.audit import note, who
from umbel.registry.convert import LOADED
from umbel.registry.cursor import Keyset
from umbel.registry.database import Database, upsert
from umbel.registry.diff import diff
from umbel.registry.draft import check_metrics
from umbel.registry.models import AliasRow, ArmRow, ExperimentRow, VersionMetricRow, VersionRow
from umbel.registry.records import ExperimentStatus, Page, Run, Standing, Version, VersionDiff, VersionState
from umbel.registry.runs import Runs


class Versions:
    def __init__(self, database: Database) -> None:
        self.database = database

    def resolve(self, model: str) -> VersionRef:
        """See ``AdapterSource.resolve``. One query."""
        return self.standing(model).ref

    def standing(self, model: str) -> Standing:
        """As ``resolve``, with the version's state: one query too."""
        ref = AdapterRef.parse(model)
        with self.database.read() as session:
            return lookup.resolved(session, ref)

    def get(self, ref: str) -> Version:
        """The version that ``ref`` names, in whatever state but deleted."""
        with self.database.read() as session:
            return convert.version(lookup.version_row(session, AdapterRef.parse(ref)))

    def list(
        self, name: str, *, state: VersionState | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Version]:
        """Versions of one adapter, newest first; deleted ones only if asked for by ``state``."""
        keys = Keyset(f"versions {name} {state}", VersionRow.number, VersionRow.id, descending=True)
        wanted = VersionRow.state == state if state else VersionRow.state != VersionState.DELETED
        with self.database.read() as session:
            adapter = lookup.adapter_row(session, name)
            statement = select(VersionRow).where(VersionRow.adapter_id == adapter.id, wanted).options(*LOADED)
            rows = list(session.scalars(keys.page(statement, limit, cursor)))
            items = tuple(convert.version(row) for row in rows[:limit])
            return Page(items, keys.next(rows, limit, lambda row: (row.number, row.id)))

    def diff(self, before: str, after: str) -> VersionDiff:
        old, new = self.get(before), self.get(after)
        return diff(old, new, self._run(old), self._run(new))

    def _run(self, version: Version) -> Run | None:
        return None if version.run is None else Runs(self.database).get(version.run)

    def set_metrics(self, ref: str, metrics: dict[str, float], *, actor: str | None = None) -> Version:
        """Adds or replaces numbers that were measured after publishing; what was asked is kept in evaluations."""
        check_metrics(metrics)
        with self.database.write() as session:
            row = lookup.version_row(session, AdapterRef.parse(ref))
            for key, value in metrics.items():
                upsert(session, VersionMetricRow, {"version_id": row.id, "key": key, "value": value})
            note(session, who(actor), "metrics", str(convert.version_ref(row)), set=dict(metrics))
        return self.get(ref)

    def yank(self, ref: str, *, reason: str, actor: str | None = None) -> Version:
        """Refuses it to everybody who does not name its digest. Aliases stay; ``rollback`` moves them."""
        return self._change(ref, VersionState.YANKED, reason, actor)

    def unyank(self, ref: str, *, actor: str | None = None) -> Version:
        return self._change(ref, VersionState.READY, None, actor, only_from=VersionState.YANKED)

    def deprecate(self, ref: str, *, reason: str, actor: str | None = None) -> Version:
        return self._change(ref, VersionState.DEPRECATED, reason, actor)

    def reject(self, ref: str, *, reason: str, actor: str | None = None) -> Version:
        """For what turned out to be broken after it was published, such as NaN answers."""
        return self._change(ref, VersionState.REJECTED, reason, actor)

    def remove(self, ref: str, *, reason: str | None = None, actor: str | None = None) -> Version:
        """Deletes one version; gc takes its bytes later. Raises Conflict (``version_in_use``) while an alias or a
        running experiment needs it. Its number is never given again."""
        return self._change(ref, VersionState.DELETED, reason, actor)

    def _change(
        self,
        ref: str,
        state: VersionState,
        reason: str | None,
        actor: str | None,
        only_from: VersionState | None = None,
    ) -> Version:
        parsed = AdapterRef.parse(ref)
        if str(parsed) == parsed.name:
            raise UsageError(f"{ref!r} does not say which version.", code="invalid_reference", hint=f"{ref}:3")
        with self.database.write() as session:
            lookup.adapter_row(session, parsed.name, lock=True)
            row = lookup.version_row(session, parsed)
            if only_from and row.state != only_from:
                raise Conflict(f"{parsed} is {row.state}, not {only_from}.", code="wrong_state", hint="nothing to undo")
            if state == VersionState.DELETED:
                refuse_in_use(session, row)
            retire(session, row, state, reason, who(actor))
            return convert.version(row)


def retire(session: Session, row: VersionRow, state: VersionState, reason: str | None, actor: str) -> None:
    """Into another state, in the caller's transaction. Needs ``adapter`` loaded."""
    note(session, actor, str(state), str(convert.version_ref(row)), before=row.state, reason=reason)
    row.state, row.reason, row.state_at = state, reason, now_ms()


def refuse_in_use(session: Session, row: VersionRow, *, aliases: bool = True) -> None:
    """Raises Conflict (``version_in_use``) where an alias (if asked) or a running experiment points at the version."""
    pointing = select(AliasRow.alias).where(AliasRow.adapter_id == row.adapter_id, AliasRow.number == row.number)
    running = and_(ExperimentRow.id == ArmRow.experiment_id, ExperimentRow.status == ExperimentStatus.RUNNING)
    testing = select(ExperimentRow.name).join(ArmRow, running).where(ArmRow.version_id == row.id).distinct()
    users = [f"alias {alias}" for alias in session.scalars(pointing)] if aliases else []
    users += [f"experiment {name}" for name in session.scalars(testing)]
    if users:
        raise Conflict(
            f"{convert.version_ref(row)} is in use by {', '.join(users)}.",
            code="version_in_use",
            hint="move the alias or stop the experiment first, or yank the version instead",
        )


def count_versions(session: Session) -> int:
    live = select(func.count()).select_from(VersionRow).where(VersionRow.state != VersionState.DELETED)
    return session.execute(live).scalar_one()
