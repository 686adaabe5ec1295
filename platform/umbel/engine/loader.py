"""Loads adapters on a thread of its own, so that decoding never waits for a disk or a network."""

import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import Fused
from umbel.backbone.backbone import Backbone
from umbel.core.errors import AdapterRefused, UmbelError, Unavailable
from umbel.core.protocols import AdapterSource, StoredAdapter
from umbel.engine.ready import ReadyForms
from umbel.engine.resident import Resident, make_resident

log = logging.getLogger(__name__)

FORGET_AFTER = 5.0
"""Seconds for which a failed load is answered from memory."""


_INTERPRETER = 0.0005
"""Seconds after which a thread that runs Python lets another one. By default ten times as many, and a step asks for the
interpreter some ten times: beside a load it would take several times as long."""


@dataclass(frozen=True, slots=True)
class Failure:
    error: UmbelError
    until: float


class Loader:
    """Fetches, reads, checks and fuses adapters by digest. All methods but the work itself belong to one thread."""

    def __init__(
        self,
        backbone: Backbone,
        source: AdapterSource,
        load: Callable[[StoredAdapter], Adapter],
        *,
        clock: Callable[[], float],
        on_done: Callable[[], None],
        ready_forms: ReadyForms | None = None,
    ) -> None:
        self._backbone, self._source, self._load = backbone, source, load
        self._clock, self._on_done, self._ready_forms = clock, on_done, ready_forms
        begin = None if backbone.kernels is None else backbone.kernels.alone
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="umbel-loader", initializer=begin)
        self._lock = threading.Lock()
        sys.setswitchinterval(min(sys.getswitchinterval(), _INTERPRETER))
        self._finished: list[tuple[str, Resident | UmbelError]] = []
        self.loading: set[str] = set()
        self.ready: dict[str, Resident] = {}
        """Loaded and waiting for a slot."""
        self.failed: dict[str, Failure] = {}

    @property
    def busy(self) -> int:
        """Adapters on their way: loading, or loaded without a slot."""
        return len(self.loading) + len(self.ready)

    def failure(self, digest: str) -> UmbelError | None:
        """Why the last load failed, for a few seconds; then it may be tried again."""
        found = self.failed.get(digest)
        if found is not None and self._clock() >= found.until:
            del self.failed[digest]
            return None
        return None if found is None else found.error

    def start(self, digest: str) -> None:
        """Begins a load unless it is under way."""
        if digest not in self.loading and digest not in self.ready:
            self.loading.add(digest)
            self._pool.submit(self._work, digest)

    def collect(self) -> list[str]:
        """Takes over finished loads and returns their digests."""
        with self._lock:
            finished, self._finished = self._finished, []
        for digest, result in finished:
            self.loading.discard(digest)
            if isinstance(result, Resident):
                self.ready[digest] = result
            else:
                self.failed[digest] = Failure(result, self._clock() + FORGET_AFTER)
        return [digest for digest, _ in finished]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, digest: str) -> None:
        kept = self._kept(digest)
        result = kept or self._attempt(digest)
        fused = result.fused if isinstance(result, Resident) else None  # a slot takes it away
        with self._lock:
            self._finished.append((digest, result))
        self._on_done()
        if kept is None and isinstance(result, Resident) and fused is not None:
            self._keep(result, fused)

    def _kept(self, digest: str) -> Resident | None:
        if self._ready_forms is None:
            return None
        try:
            return self._ready_forms.read(digest)
        except Exception:
            log.exception("the kept form of adapter %s could not be read", digest)
            return None

    def _keep(self, resident: Resident, fused: Fused) -> None:
        if self._ready_forms is None:
            return
        try:
            self._ready_forms.write(resident, fused)
        except Exception:
            log.exception("adapter %s could not be kept", resident.digest)

    def _attempt(self, digest: str) -> Resident | UmbelError:
        try:
            stored = self._source.fetch(digest)
            if stored.ref.digest != digest:
                raise AdapterRefused(f"asked for {digest}, got {stored.ref.digest}.", code="digest_mismatch")
            return make_resident(digest, self._load(stored), self._backbone)
        except UmbelError as error:
            return error
        except Exception as error:
            log.exception("adapter %s could not be loaded", digest)
            return Unavailable(
                f"adapter {digest} could not be loaded ({type(error).__name__}).",
                code="adapter_load_failed",
                hint="umbel verify checks its files; the server's log has the details",
                retry_after=FORGET_AFTER,
            )
