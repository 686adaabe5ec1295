"""``/v1/adapters``: the registry over HTTP. Times are UTC milliseconds."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, Field, StrictInt, StrictStr

from umbel.core.contract import Contract
from umbel.core.wire.base import Reply, Request

Item = TypeVar("Item")

_Text = Annotated[str, BeforeValidator(lambda value: None if value is None else str(value))]


class ListReply(Reply, Generic[Item]):
    """One page; ``next`` is the cursor of the following one, None on the last."""

    object: str = "list"
    data: list[Item]
    next: str | None = None


class VersionSummary(Reply):
    """One immutable upload, as lists show it."""

    name: str
    number: int
    digest: str
    weights_sha256: str
    method: str
    output_head: str
    state: str
    reason: str | None = None
    backbone: str
    """Fingerprint of the backbone that it was made for."""
    bytes: int
    n_params: int | None = None
    metrics: dict[str, float]
    aliases: list[str]
    created_by: str
    created_at: int


class FileView(Reply):
    path: str
    digest: str
    bytes: int


class VersionView(VersionSummary):
    run: str | None = None
    parent: _Text | None = None
    """``name:3``, the version that its training started from."""
    dataset: str | None = None
    seed: int | None = None
    config: dict[str, Any]
    contract: Contract
    files: list[FileView]
    card: str | None = None
    """Markdown that somebody wrote: do not trust it as HTML."""
    code_version: str | None = None


class AdapterView(Reply):
    name: str
    description: str = ""
    backbone: str
    aliases: dict[str, int]
    tags: dict[str, str]
    last_number: int
    latest: int | None = None
    """The newest version that may answer: what ``name@latest`` means."""
    shown: VersionSummary | None = None
    """The champion, or the newest version where there is none."""
    created_by: str
    created_at: int


class AliasEventView(Reply):
    name: str
    alias: str
    kind: str
    """``set``, ``rollback`` or ``remove``."""
    origin: int | None = None
    target: int | None = None
    actor: str
    reason: str | None = None
    evidence: str | None = None
    at: int


class HistoryReply(Reply):
    object: str = "list"
    data: list[AliasEventView]


class ChangeView(Reply):
    key: str
    before: Any = None
    after: Any = None


class WeightChangeView(Reply):
    """``layers``: [place, ||after - before|| / ||before||], null where before is zero; ``why_not``: no comparison."""

    layers: list[tuple[str, float | None]]
    why_not: str | None


class DiffView(Reply):
    before: _Text
    after: _Text
    same_answers: bool
    """Equal digests: whatever else differs, both give the same answers."""
    config: list[ChangeView]
    contract: list[ChangeView]
    data: list[ChangeView]
    training: list[ChangeView]
    """What their runs were asked beside that, such as lr and epochs."""
    metrics: list[ChangeView]
    files: list[ChangeView]
    weights: WeightChangeView | None = None
    """Asked for by ``weights=true``."""


_Reason = Annotated[StrictStr, Field(max_length=500)] | None
_Expect = Annotated[StrictInt, Field(ge=0)] | None


class AliasMove(Request):
    """``expect`` is the version number that the caller believes the alias has (0: none); else 409."""

    expect: _Expect = None
    reason: _Reason = None


class AliasSet(AliasMove):
    version: Annotated[StrictInt, Field(ge=1)]
    evidence: _Reason = None
    """Id of the evaluation or experiment that speaks for it."""


class RollbackRequest(AliasMove):
    alias: StrictStr = "champion"


class RetireRequest(Request):
    reason: Annotated[StrictStr, Field(min_length=1, max_length=500)]


class TagSet(Request):
    value: Annotated[StrictStr, Field(max_length=512)]


class UploadFields(Request):
    """What stands beside the files of an upload. A PEFT folder lacks what umbel.json says; the two may not differ."""

    labels: tuple[str, ...] = ()
    """Names of a classifier's rows, in order."""
    template: str | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    description: Annotated[str, Field(max_length=2000)] | None = None
    """Of this version; lists show their adapter's champion's."""
    allow_noop: bool = False
    """Take it even if it changes nothing (for tests)."""
    backbone: str | None = None
    """Name or fingerprint; must be the one that this server runs."""
