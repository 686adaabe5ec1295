"""The registry as others see it: one object per home, made of small parts that share a database and a store."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from umbel.core.contract import Contract
from umbel.core.manifest import METRICS_FILE, metrics_file
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.core.settings import Settings
from umbel.registry import migrate
from umbel.registry.adapters import Adapters
from umbel.registry.aliases import Aliases
from umbel.registry.audit import Audit, who
from umbel.registry.backbones import Backbones
from umbel.registry.database import Database
from umbel.registry.datasets import Datasets
from umbel.registry.draft import Draft, Source, code_version, plain_json, split_card
from umbel.registry.evaluations import Evaluations
from umbel.registry.experiments import Experiments
from umbel.registry.fetch import Fetcher
from umbel.registry.gc import GRACE_MS, Collector
from umbel.registry.idempotency import Idempotency
from umbel.registry.keys import Keys
from umbel.registry.publish import Publisher
from umbel.registry.records import GcReport, VerifyReport, Version
from umbel.registry.runs import Runs
from umbel.registry.store import BlobStore
from umbel.registry.tags import Tags
from umbel.registry.verify import Verifier
from umbel.registry.versions import Versions


class Registry:
    """Thread-safe; one per process. It is an ``AdapterSource`` and a ``RunLog`` (the latter is ``registry.runs``)."""

    def __init__(self, settings: Settings, database: Database, store: BlobStore) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.adapters = Adapters(database)
        self.versions = Versions(database)
        self.aliases = Aliases(database)
        self.tags = Tags(database)
        self.runs = Runs(database)
        self.backbones = Backbones(database)
        self.datasets = Datasets(database)
        self.evaluations = Evaluations(database)
        self.experiments = Experiments(database)
        self.keys = Keys(database)
        self.idempotency = Idempotency(database)
        self.audit = Audit(database)
        self._publisher = Publisher(database, store)
        self._fetcher = Fetcher(database, store, settings.cache / "adapters")

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Makes an empty home ready; raises Unavailable (``database_outdated``) for one of another revision."""
        settings = settings or Settings.load()
        settings.make_home()
        store, database = BlobStore(settings.store_url), Database(settings.database_url)
        try:
            migrate.ensure(database)
            store.create()
        except BaseException:
            database.close()
            raise
        return cls(settings, database, store)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def resolve(self, model: str) -> VersionRef:
        return self.versions.resolve(model)

    def fetch(self, digest: str) -> StoredAdapter:
        return self._fetcher.fetch(digest)

    def export(self, ref: str, folder: Path) -> Path:
        """A copy of a version's files with its card as README.md and its metrics; the folder must be new or empty."""
        version = self.versions.get(ref)
        exported = self._fetcher.export(version.digest, folder, version.card)
        if version.metrics:
            (exported / METRICS_FILE).write_bytes(metrics_file(version.digest, version.metrics))
        return exported

    def publish(
        self,
        files: Mapping[str, Source],
        *,
        name: str,
        method: str,
        config: Mapping[str, Any],
        contract: Contract,
        backbone: str,
        validate: Callable[[Path], None] | None = None,
        run: str | None = None,
        parent: str | None = None,
        dataset: str | None = None,
        metrics: Mapping[str, float] | None = None,
        card: str | None = None,
        seed: int | None = None,
        n_params: int | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        actor: str | None = None,
        crown: bool = True,
    ) -> Version:
        """Stores files as the next version of ``name``, or finds the version with the same digest.

        ``backbone`` is a fingerprint, ``dataset`` a digest, ``parent`` a reference that cannot move (``name:3``).
        ``description`` is the adapter's where it has none; a version's own is its contract's, which lists show while
        it is champion. A README.md among the files is the card unless ``card`` is given. ``validate`` sees a folder
        with the files (not the card) and raises what it thinks; then nothing is kept. The first version of an adapter
        becomes its champion unless ``crown`` is off, later ones never do by themselves. Raises AdapterRefused,
        Conflict (``backbone_mismatch``, ``name_taken``) or Unavailable (``store_unavailable``).
        """
        kept, card = split_card(files, card)
        draft = Draft(
            name=name,
            method=method,
            config=plain_json(config),
            contract=contract,
            backbone=backbone,
            description=description,
            tags=tags or {},
            run=run,
            parent=parent,
            dataset=dataset,
            metrics=metrics or {},
            card=card,
            seed=seed,
            n_params=n_params,
            code_version=code_version(),
            actor=who(actor),
            crown=crown,
        )
        return self._publisher.publish(draft, kept, validate)

    def gc(self, *, dry_run: bool = True, grace_ms: int = GRACE_MS, actor: str | None = None) -> GcReport:
        """Removes what nothing needs; by default only says what that is."""
        collector = Collector(self.database, self.store, self._fetcher.cache, self.settings.ready)
        return collector.collect(dry_run=dry_run, grace_ms=grace_ms, actor=actor)

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """Whether every version is whole; ``deep`` reads every byte and quarantines what is wrong."""
        return Verifier(self.database, self.store).verify(deep=deep)

    def start(self, *, name: str, params: Mapping[str, Any], seed: int) -> str:
        return self.runs.start(name=name, params=params, seed=seed)

    def metrics(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self.runs.metrics(run, step, values)

    def event(self, run: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        self.runs.event(run, message, level=level, data=data)

    def cancelled(self, run: str) -> bool:
        return self.runs.cancelled(run)

    def finish(
        self, run: str, *, status: str, error: str | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        self.runs.finish(run, status=status, error=error, summary=summary)
