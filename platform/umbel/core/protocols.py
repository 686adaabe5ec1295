"""What the compute side asks of whoever keeps adapters and runs. ``umbel.registry`` satisfies both.

The engine and the trainer never see SQL: they take these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from umbel.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class VersionRef:
    """One version, resolved: from here on only the digest is its identity."""

    name: str
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A version's files, checked against their digests, in a folder that must not be written to."""

    ref: VersionRef
    manifest: Manifest
    folder: Path


class AdapterSource(Protocol):
    """Read-only and thread-safe: the engine's loader calls it from a background thread."""

    def resolve(self, model: str) -> VersionRef:
        """``name``, ``name:3``, ``name@alias`` or ``name@sha256:...`` to the version it means right now.

        Raises NotFound (``adapter_not_found``, ``version_not_found``, ``alias_not_found``) or Unavailable
        (``version_yanked``, ``version_not_ready``).
        """
        ...

    def fetch(self, digest: str) -> StoredAdapter:
        """The files of a version, verified. Raises NotFound or Unavailable (``artifact_corrupt``)."""
        ...


class RunLog(Protocol):
    """Where a training run says what it is doing, while it does it."""

    def start(self, *, name: str, params: Mapping[str, Any], seed: int) -> str:
        """Opens a run and returns its id (``run-...``)."""
        ...

    def metrics(self, run: str, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, run: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None) -> None: ...

    def cancelled(self, run: str) -> bool:
        """Whether somebody asked for this run to stop."""
        ...

    def finish(
        self, run: str, *, status: str, error: str | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        """``status`` is ``succeeded``, ``failed`` or ``cancelled``."""
        ...
