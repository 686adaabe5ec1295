"""What the routes work with: one object per app, passed, never global."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Request

from umbel.core.errors import Unavailable
from umbel.engine import Finished, Handle, Stats
from umbel.engine import Request as EngineRequest
from umbel.registry import Registry
from umbel.server.guardrails import Guardrails
from umbel.server.importing import Importer
from umbel.server.limits import Limit
from umbel.server.metrics import Metrics
from umbel.server.security import Gate
from umbel.server.target import BackboneCard, Target, Targets
from umbel.server.texts import Texts


class EngineFace(Protocol):
    """The thread that owns the engine, as the server sees it."""

    def submit(self, request: EngineRequest) -> Handle:
        """Raises UsageError, or Overloaded where the queue is full. Thread-safe."""
        ...

    def submit_together(self, requests: Sequence[EngineRequest]) -> list[Handle]:
        """All or none; those that read the same tokens without a method share one prefill."""
        ...

    async def warm(self, digest: str) -> bool:
        """Loads it; False where it was resident already."""
        ...

    async def unload(self, digest: str) -> bool:
        """Drops it; False where it was not resident. Raises Conflict while rows wear it."""
        ...

    def stats(self) -> Stats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    """Beside loopback's own names."""
    require_keys: bool = False
    """Beyond loopback they always are."""
    max_body_bytes: int = 8_000_000
    body_seconds: float = 30.0
    max_upload_bytes: int = 256_000_000
    """Of an adapter's folder, which goes to the disk as it comes."""
    upload_seconds: float = 600.0
    request_seconds: float = 600.0
    """After so long a row fails with ``deadline_exceeded``."""
    ping_seconds: float = 15.0
    patience_seconds: float = 30.0
    """How long a stream waits for a reader that takes nothing."""
    rows_in_flight: int = 64
    """Texts of one classify, score, tag or embeddings request that are in the engine at once."""

    @property
    def body_limit(self) -> Limit:
        hint = "send fewer or shorter texts, or start the server with --max-body"
        return Limit(self.max_body_bytes, self.body_seconds, hint)

    @property
    def upload_limit(self) -> Limit:
        return Limit(self.max_upload_bytes, self.upload_seconds, "start the server with --max-upload")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine was given."""

    max_rows: int
    kv_bytes: int
    adapter_bytes: int
    guesses: int = 5
    """Tokens that a row may be ahead of itself in a step of few rows."""


@dataclass(slots=True)
class Service:
    registry: Registry
    engine: EngineFace
    capacity: Capacity
    backbone: BackboneCard
    targets: Targets
    texts: Texts
    gate: Gate
    metrics: Metrics
    guardrails: Guardrails
    importer: Importer
    config: ServerConfig
    started: float = field(default_factory=time.monotonic)
    draining: bool = False
    in_flight: int = 0
    """Requests that are being answered, probes not counted."""

    def submit(self, request: EngineRequest) -> Handle:
        if self.draining:
            raise shutting_down()
        return self.engine.submit(request)

    def submit_together(self, requests: Sequence[EngineRequest]) -> list[Handle]:
        if self.draining:
            raise shutting_down()
        return self.engine.submit_together(requests)

    @property
    def deadline(self) -> float:
        return time.monotonic() + self.config.request_seconds

    def observe(self, target: Target, finished: Finished) -> None:
        """Counts one row that ended."""
        if target.enrolment is not None:
            target.enrolment.saw(finished)
        name = self.metrics.name(target.name)
        version = "other" if name != target.name else str(target.number or "")
        self.metrics.success.labels(name, version, finished.reason).inc()
        self.metrics.prompt_tokens.labels(name).inc(finished.usage.prompt_tokens)
        self.metrics.generated.labels(name).inc(finished.usage.completion_tokens)
        timing = finished.timing
        self.metrics.first_token.observe((timing.queue_ms + timing.load_ms + timing.prefill_ms) / 1e3)
        if timing.load_ms:
            self.metrics.load.observe(timing.load_ms / 1e3)
        if finished.usage.completion_tokens > 1:
            self.metrics.per_token.observe(timing.decode_ms / 1e3 / (finished.usage.completion_tokens - 1))


def shutting_down() -> Unavailable:
    return Unavailable(
        "the server is shutting down.", code="shutting_down", hint="ask again in a moment", retry_after=2.0
    )


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
