"""What the registry hands out: plain frozen values, never database rows. Times are UTC milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from umbel.core.contract import Contract, OutputHead
from umbel.core.manifest import Manifest, ManifestFile
from umbel.core.protocols import VersionRef

T = TypeVar("T")


class VersionState(StrEnum):
    """``staged`` and ``validating`` are for uploads that arrive in parts; ``publish`` goes straight to ``ready``."""

    STAGED = "staged"
    VALIDATING = "validating"
    READY = "ready"
    DEPRECATED = "deprecated"
    """Answers as before, with a word of warning."""
    YANKED = "yanked"
    """Refused by name, number and alias; its digest still loads, so that whoever pinned it is not broken."""
    REJECTED = "rejected"
    DELETED = "deleted"
    """Its bytes go with the next gc after the grace; its row stays, so that its number is never given again."""


SERVABLE = (VersionState.READY, VersionState.DEPRECATED)


class RunStatus(StrEnum):
    """OpenAI's six words for a fine-tuning job."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def as_told(self) -> str:
        """After the name of a run that has finished."""
        return f"{'was' if self is RunStatus.CANCELLED else 'has'} {self}"


FINISHED = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)


class Scope(StrEnum):
    """What a key may do. Each stands alone, but ``admin`` includes all."""

    INFER = "infer"
    READ = "read"
    TRAIN = "train"
    PUBLISH = "publish"
    PROMOTE = "promote"
    ADMIN = "admin"


class ExperimentStatus(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. ``next`` is the cursor of the following page, None on the last."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a reference means now, and whether it is advised against."""

    ref: VersionRef
    state: VersionState
    reason: str | None
    since: int
    """When it came into this state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable upload. ``state``, ``reason``, ``aliases`` and ``metrics`` are as of the moment of reading."""

    name: str
    number: int
    digest: str
    weights_sha256: str
    method: str
    output_head: OutputHead
    state: VersionState
    reason: str | None
    backbone: str
    """Fingerprint of the backbone that it was made for."""
    run: str | None
    parent: VersionRef | None
    """The version that its training started from."""
    dataset: str | None
    """Digest of the data that it was trained on."""
    seed: int | None
    n_params: int | None
    bytes: int
    config: Mapping[str, Any]
    contract: Contract
    files: tuple[ManifestFile, ...]
    metrics: Mapping[str, float]
    aliases: tuple[str, ...]
    card: str | None
    code_version: str | None
    created_by: str
    created_at: int

    @property
    def ref(self) -> VersionRef:
        return VersionRef(self.name, self.number, self.digest)

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            method=self.method,
            config=dict(self.config),
            contract=self.contract,
            backbone=self.backbone,
            files=self.files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One row of the list of adapters: the adapter and the version that stands for it.

    ``shown`` is the version that ``champion`` points at (or the alias that the query asked for); without
    a champion it is the newest one. None while an adapter has no version at all.
    """

    name: str
    description: str
    backbone: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    last_number: int
    """Highest version number ever given."""
    latest: int | None
    """The newest version that may answer: what ``name@latest`` means."""
    shown: Version | None
    created_by: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasEvent:
    """One move of an alias. ``origin`` is None where it was made, ``target`` None where it was removed."""

    name: str
    alias: str
    kind: str
    """``set``, ``rollback`` or ``remove``."""
    origin: int | None
    target: int | None
    actor: str
    reason: str | None
    evidence: str | None
    """Id of the evaluation or experiment that spoke for the move."""
    at: int


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two versions; None where one side has nothing."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDiff:
    before: VersionRef
    after: VersionRef
    config: tuple[Change, ...]
    contract: tuple[Change, ...]
    data: tuple[Change, ...]
    """Dataset, run, seed, parent, code version, method and backbone."""
    training: tuple[Change, ...]
    """What their runs were asked beside that, such as lr and epochs."""
    metrics: tuple[Change, ...]
    files: tuple[Change, ...]

    @property
    def same_answers(self) -> bool:
        """Equal digests: whatever else differs, both give the same answers."""
        return self.before.digest == self.after.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    name: str
    fingerprint: str
    source: str
    licence: str | None
    config: Mapping[str, Any]
    tokenizer_sha: str | None
    chat_template_sha: str | None
    parent: str | None
    """Fingerprint that this one was made from, by another dtype or quantisation."""
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    name: str
    digest: str
    form: str
    """classify, regress, tag, embed or generate."""
    rows: int
    bytes: int
    splits: Mapping[str, int]
    report: Mapping[str, Any]
    source: str | None
    licence: str | None
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    id: str
    name: str
    status: RunStatus
    params: Mapping[str, Any]
    seed: int
    attempt: int
    """How many workers have taken it so far."""
    lease_owner: str | None
    heartbeat_at: int | None
    cancel_requested: bool
    error: str | None
    summary: Mapping[str, Any] | None
    created_by: str
    created_at: int
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    seq: int
    """Counts up from 1 inside one run, without a gap: what SSE's Last-Event-ID resumes from."""
    level: str
    message: str
    data: Mapping[str, Any] | None
    at: int


@dataclass(frozen=True, slots=True)
class MetricPoint:
    key: str
    step: int
    value: float | None
    """None where the run measured NaN or an infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """The score of one item. Kept for ever: without it no paired test is possible later."""

    item: str
    metric: str
    score: float
    output: str | None = None
    cluster: str | None = None
    """Items of one cluster (a document, a user) are not independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    id: str
    version: VersionRef
    suite: str
    """Digest of the items that were asked."""
    params: Mapping[str, Any]
    """Everything that decides the answers besides the version, such as decoding."""
    summary: Mapping[str, float]
    n_items: int
    created_by: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    version: VersionRef
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    id: str
    name: str
    status: ExperimentStatus
    metric: str
    """What decides it."""
    arms: tuple[Arm, ...]
    salt: str
    hash_version: int
    config: Mapping[str, Any]
    decision: Mapping[str, Any] | None
    created_by: str
    created_at: int
    stopped_at: int | None


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Over units that have at least one outcome; several outcomes of one unit count as their mean."""

    n: int
    total: float
    total_squares: float
    zero_or_one: bool
    """Whether every single outcome was 0 or 1; a unit's mean may lie between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCounts:
    arm: Arm
    exposed: int
    metrics: Mapping[str, MetricSums] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    created_by: str
    created_at: int
    revoked_at: int | None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    id: int
    actor: str
    action: str
    target: str
    detail: Mapping[str, Any]
    at: int


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The answer that was given to a request whose idempotency key came again."""

    status: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that ``verify`` found wrong. ``versions`` are those that need it."""

    code: str
    message: str
    path: str | None = None
    digest: str | None = None
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    versions: int
    blobs: int
    bytes: int
    deep: bool
    problems: tuple[Problem, ...]

    @property
    def clean(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    dry_run: bool
    blobs: tuple[str, ...]
    """Digests that nothing needs."""
    bytes: int
    staging: tuple[str, ...]
    """Leftovers of publishes that died."""
    cached: tuple[str, ...]
    """Materialised folders of versions that are gone."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    current: str | None
    """Revision of the database; None for an empty one."""
    head: str
    """Revision that this program wants."""
    url: str
    """Without the password."""

    @property
    def ok(self) -> bool:
        return self.current == self.head
