"""From a folder that PEFT or umbel wrote to a version: read, checked, stored as umbel itself would write it.

Two folders that mean the same adapter are therefore one version. Knows no HTTP.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError

from umbel.adapters.adapter import Adapter
from umbel.adapters.peft_io import Frozen, check_effect, export_files, import_folder
from umbel.core.clock import now_ms
from umbel.core.contract import Contract
from umbel.core.errors import AdapterRefused, Overloaded
from umbel.core.manifest import CARD_FILE, UMBEL_FILE, read_metrics
from umbel.core.shape import BackboneShape
from umbel.core.validation import told
from umbel.core.wire.adapters import UploadFields
from umbel.registry import Registry
from umbel.registry.records import Version

AT_ONCE = 4
"""Uploads that arrive at the same time; they are read one after another, since each is held in memory."""


@dataclass(frozen=True, slots=True)
class Base:
    """The backbone that adapters are imported for."""

    name: str
    fingerprint: str
    shape: BackboneShape
    frozen: Frozen
    """Its embeddings and lm_head, for folders that bring a copy of them."""


class Importer:
    def __init__(self, registry: Registry, base: Base) -> None:
        self.registry = registry
        self.base = base
        self._arriving = 0
        self._one: CapacityLimiter | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A private folder for one upload, gone afterwards. Raises Overloaded where too many arrive already."""
        if self._arriving >= AT_ONCE:
            raise Overloaded(
                f"{AT_ONCE} uploads arrive already.", code="too_many_uploads", hint="try again", retry_after=2.0
            )
        self._arriving += 1
        try:
            with self.registry.store.staged() as staging:
                yield staging
        finally:
            self._arriving -= 1

    async def publish(self, name: str, folder: Path, asked: UploadFields, actor: str) -> tuple[Version, bool]:
        """The version, and whether it is new. Raises AdapterRefused, ConfigError, Conflict or Unavailable."""
        self._one = self._one or CapacityLimiter(1)
        return await to_thread.run_sync(self._publish, name, folder, asked, actor, limiter=self._one)

    def _publish(self, name: str, folder: Path, asked: UploadFields, actor: str) -> tuple[Version, bool]:
        adapter = read_folder(folder, self.base, asked)
        files = export_files(adapter, backbone_name=self.base.name)
        card = folder / CARD_FILE
        reported = read_metrics(folder)
        started = now_ms()
        version = self.registry.publish(
            files,
            name=name,
            method=adapter.method.name,
            config=adapter.config,
            contract=adapter.contract,
            backbone=self.base.fingerprint,
            validate=self._reads_back,
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
            n_params=adapter.num_parameters,
            description=asked.description,
            actor=actor,
        )
        new = version.created_at >= started
        if new and reported is not None and reported[0] == version.digest:  # of other bytes they say nothing
            version = self.registry.versions.set_metrics(str(version.ref), reported[1])
        return version, new

    def _reads_back(self, staged: Path) -> None:
        import_folder(staged, self.base.shape, backbone=self.base.fingerprint)


def read_folder(folder: Path, base: Base, asked: UploadFields) -> Adapter:
    """Raises AdapterRefused or ConfigError, each reason with its own code."""
    if asked.backbone not in (None, base.name, base.fingerprint):
        raise AdapterRefused(
            f"this server runs the backbone {base.name} {base.fingerprint}, not {asked.backbone}.",
            code="wrong_backbone",
            param="backbone",
            hint="upload it to a server that runs its backbone, or umbel adapters import --backbone",
        )
    try:
        adapter = import_folder(folder, base.shape, backbone=base.fingerprint, labels=asked.labels, frozen=base.frozen)
        adapter = replace(adapter, contract=_contract(adapter.contract, asked, own=(folder / UMBEL_FILE).is_file()))
    except ValidationError as error:
        raise told(error) from None
    if not asked.allow_noop:
        check_effect(adapter)
    return adapter


def _contract(contract: Contract, asked: UploadFields, *, own: bool) -> Contract:
    """What was asked completes a PEFT folder; umbel.json has said it already."""
    given = {"labels": asked.labels or None, "template": asked.template, "max_length": asked.max_length}
    differ = {key: value for key, value in given.items() if value is not None and value != getattr(contract, key)}
    if own and differ:
        key, value = next(iter(differ.items()))
        raise AdapterRefused(
            f"{key} was given as {value!r}; {UMBEL_FILE} says {getattr(contract, key)!r}.",
            code="contract_mismatch",
            param=key,
            hint=f"leave {key} out",
        )
    described = {} if asked.description is None else {"description": asked.description}
    return Contract.model_validate({**contract.model_dump(), **differ, **described})
