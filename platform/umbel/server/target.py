"""From the word in ``model`` to what answers: a version of an adapter, or the bare backbone.

Never one in place of the other: whatever cannot be resolved is an error that names it.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from anyio import to_thread

from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import Conflict, NotFound, UmbelError, Unavailable, UsageError
from umbel.core.forms import Form, other_form, told
from umbel.core.protocols import VersionRef
from umbel.core.wire.server import Resident
from umbel.registry import Registry
from umbel.registry.records import Experiment, Standing, VersionState
from umbel.server.enrolling import Caller, Enroller, Enrolment

log = logging.getLogger("umbel.server")

T = TypeVar("T")

_ROUTES = {
    OutputHead.GENERATE: "/v1/chat/completions or /v1/completions",
    OutputHead.CLASSIFY: "/v1/classify",
    OutputHead.REGRESS: "/v1/score",
    OutputHead.TAG: "/v1/tag",
    OutputHead.EMBED: "/v1/embeddings",
}
_REMEMBERED = 4096
"""Versions and references kept in memory; a version never changes, so this is no cache that can be stale."""


@dataclass(frozen=True, slots=True)
class BackboneCard:
    """What a server tells about its backbone."""

    name: str
    fingerprint: str
    dtype: str
    quantised: Form | None
    context: int
    """Most tokens of a prompt and its answer together."""
    contract: Contract
    """How the bare backbone is asked: its chat template, greedy, unless a request says otherwise."""
    loaded_at: int
    """UTC milliseconds."""

    @property
    def weights(self) -> str:
        """``bfloat16``, or ``bfloat16 with int8 linears``."""
        return self.dtype if self.quantised is None else f"{self.dtype} with {told(self.quantised)}"


@dataclass(frozen=True, slots=True)
class Target:
    """What answers one request, decided once: later moves of an alias do not change it."""

    shown: str
    """``name:3``, or the backbone's name."""
    digest: str
    """Of the version; the backbone's fingerprint for the backbone."""
    adapter: str | None
    """Digest for the engine; None is the bare backbone."""
    contract: Contract
    name: str
    number: int | None
    enrolment: Enrolment | None = None
    """Where an experiment's name led here."""
    deprecated: int | None = None
    """Since when (UTC milliseconds) its version is advised against."""

    @property
    def headers(self) -> dict[str, str]:
        return headers_of([self])

    @property
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: equal as long as equal requests give equal answers."""
        return f"fp_{self.digest.removeprefix('sha256:')[:12]}"


def headers_of(targets: Sequence[Target]) -> dict[str, str]:
    """What every answer carries. Of several models they are listed in the request's order; at most one of them is an
    experiment."""
    enrolled = [target.enrolment.headers for target in targets if target.enrolment]
    return {
        "X-Umbel-Adapter": ", ".join(target.shown for target in targets),
        "X-Umbel-Digest": ", ".join(target.digest for target in targets),
        **(enrolled[0] if enrolled else {}),
        **_deprecation(targets),
    }


def _deprecation(targets: Sequence[Target]) -> dict[str, str]:
    """RFC 9745: since when, the earliest of several, and where the reason stands."""
    since = {target.shown: target.deprecated for target in targets if target.deprecated is not None}
    if not since:
        return {}
    of = {target.shown: f"/v1/adapters/{target.name}/versions/{target.number}" for target in targets}
    links = ", ".join(f'<{of[shown]}>; rel="deprecation"; type="application/json"' for shown in since)
    return {"Deprecation": f"@{min(since.values()) // 1000}", "Link": links}


class Targets:
    """Resolves ``model``, each time anew, so that a promote counts from the next request on."""

    def __init__(self, registry: Registry, backbone: BackboneCard) -> None:
        self.registry = registry
        self.backbone = backbone
        self.enroller = Enroller(registry)
        self._known: OrderedDict[str, Target] = OrderedDict()
        """By ``name:3@digest``."""
        self._names: OrderedDict[str, str] = OrderedDict()
        self._last: OrderedDict[str, Standing] = OrderedDict()
        """What a word meant last, for when the database is down."""

    async def find(self, model: str, *heads: OutputHead, caller: Caller | None = None) -> Target:
        """Raises NotFound or Unavailable naming ``model``, UsageError (``wrong_route``) for another output head.

        ``caller``: whose arm it is where ``model`` is an experiment; without one an experiment is not found.
        """
        try:
            target = self._bare() if model == self.backbone.name else await self._named(model, heads, caller)
        except UmbelError as error:
            error.param = error.param or "model"
            raise
        _refuse_wrong_route(target, heads)
        return target

    async def all_of(self, model: str) -> list[Target]:
        """What may answer for ``model``: every arm of an experiment, else the one target."""
        experiment = None if model == self.backbone.name else await self.enroller.find(model)
        if experiment is None:
            return [await self.find(model)]
        return [await self._version(str(arm.version)) for arm in experiment.arms]

    def resident(self, digest: str) -> Resident:
        """The name that a digest was asked for by."""
        return Resident(adapter=self._names.get(digest), digest=digest)

    def _bare(self) -> Target:
        card = self.backbone
        return Target(card.name, card.fingerprint, None, card.contract, card.name, None)

    async def _named(self, model: str, heads: tuple[OutputHead, ...], caller: Caller | None) -> Target:
        try:
            return await self._version(model)
        except NotFound as error:
            asked = caller is not None and error.code == "adapter_not_found"
            experiment = await self.enroller.find(model) if asked else None
            if experiment is None or caller is None:
                raise
        return await self._arm(experiment, heads, caller)

    async def _arm(self, experiment: Experiment, heads: tuple[OutputHead, ...], caller: Caller) -> Target:
        """The unit is exposed before its arm is looked at: an arm that cannot answer stays in its own denominator."""
        _refuse_wrong_route(await self._of(experiment.arms[0].version), heads)
        version, enrolment = await self.enroller.enrol(experiment, caller)
        return replace(await self._version(str(version)), enrolment=enrolment)

    async def _version(self, model: str) -> Target:
        standing = await self._resolve(model)
        target = await self._of(standing.ref)
        return replace(target, deprecated=standing.since) if standing.state == VersionState.DEPRECATED else target

    async def _of(self, ref: VersionRef) -> Target:
        key = f"{ref}@{ref.digest}"
        if key not in self._known:
            _remember(self._known, key, await to_thread.run_sync(self._target, ref))
            _remember(self._names, ref.digest, str(ref))
        return self._known[key]

    async def _resolve(self, model: str) -> Standing:
        try:
            standing = await to_thread.run_sync(self.registry.versions.standing, model)
        except Unavailable as error:
            if error.code != "database_unavailable" or model not in self._last:
                raise
            return self._last[model]
        _remember(self._last, model, standing)
        return standing

    def _target(self, ref: VersionRef) -> Target:
        version = self.registry.versions.get(f"{ref.name}@{ref.digest}")
        if version.backbone != self.backbone.fingerprint:
            raise Conflict(
                f"{ref} was made for the backbone {self._called(version.backbone)}; this server has "
                f"{self.backbone.name} ({self.backbone.fingerprint}).",
                code="backbone_mismatch",
                param="model",
                hint=f"serve it on its own backbone: umbel serve --backbone {ref}",
            )
        if note := other_form(str(ref), version.contract.quantised, self.backbone.quantised):
            log.warning("%s", note)
        return Target(str(ref), ref.digest, ref.digest, version.contract, ref.name, ref.number)

    def _called(self, fingerprint: str) -> str:
        """A backbone's fingerprint, after its name where this home knows it."""
        try:
            return f"{self.registry.backbones.get(fingerprint).name} ({fingerprint})"
        except NotFound:
            return fingerprint


def _refuse_wrong_route(target: Target, heads: tuple[OutputHead, ...]) -> None:
    if heads and target.contract.output_head not in heads:
        head = target.contract.output_head
        raise UsageError(
            f"{target.shown} is a {head} {'adapter' if target.adapter else 'backbone'}; it cannot answer here.",
            code="wrong_route",
            param="model",
            hint=f"ask {_ROUTES[head]}",
        )


def _remember(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)
