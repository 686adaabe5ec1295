"""Loads adapters on a thread of its own, so that decoding never waits for a disk or a network."""

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import Fused
from umbel.backbone.backbone import Backbone
from umbel.backbone.footprint import give_back_freed
from umbel.core.cores import cores
from umbel.core.courtesy import give_way, give_way_by
from umbel.core.errors import AdapterRefused, UmbelError, Unavailable
from umbel.core.protocols import AdapterSource, StoredAdapter
from umbel.engine.ready import ReadyForms
from umbel.engine.resident import Resident, make_resident
from umbel.engine.turns import Turns

log = logging.getLogger(__name__)

FORGET_AFTER = 5.0
"""Seconds for which a failed load is answered from memory."""


_AWAITED = 0.015
"""Seconds for which a step that could begin a row waits for its adapter, if that is read back from its kept form: a few
milliseconds, less than a step takes."""
_QUIET, _UNKEPT = 0.25, 4
"""Seconds without a load after which what was loaded is kept on disk; most that wait for that."""
_LITTLE = 0.001
"""Seconds of a turn for what can wait."""
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
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="umbel-loader", initializer=self._begin)
        self._lock = threading.Condition()
        self._shares = backbone.device.type == "cpu" and torch.get_num_threads() >= cores()
        self.turns = Turns(apart=not self._shares)
        sys.setswitchinterval(min(sys.getswitchinterval(), _INTERPRETER))
        self._queued, self._closed = 0, False
        self._unkept: deque[tuple[Resident, Fused]] = deque()
        self._finished: list[tuple[str, Resident | UmbelError]] = []
        self.loading: set[str] = set()
        self._soon: set[str] = set()
        """Of these, those whose form is kept."""
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
            if self._ready_forms is not None and self._ready_forms.has(digest):
                self._soon.add(digest)
            with self._lock:
                self._queued += 1
                self._lock.notify_all()
            self._pool.submit(self._work, digest)

    def await_kept(self, seconds: float = _AWAITED) -> bool:
        """Waits for kept forms that are being read, if nothing else is loaded; whether there is one to collect.

        Where a step takes all cores, a load beside it slows both for longer than it takes alone.
        """
        if not (self._shares and self._soon and self._soon == self.loading):
            return False
        with self._lock:
            self._lock.wait_for(lambda: len(self._finished) >= len(self._soon), seconds)
            self._soon.clear()  # none is awaited twice
            return bool(self._finished)

    def take_turn(self) -> bool:
        """Lets the thread that loads go on, if it waited for the last step to end; whether there is one to collect.

        What it does in quiet gets a little time, so that a server that is never idle keeps forms and gives memory back.
        """
        seconds = self.turns.owed() if self.loading else min(self.turns.owed(), _LITTLE)
        if not seconds:
            return False
        with self._lock:
            return self._lock.wait_for(lambda: bool(self._finished), seconds)

    def collect(self) -> list[str]:
        """Takes over finished loads and returns their digests."""
        with self._lock:
            finished, self._finished = self._finished, []
        for digest, result in finished:
            self.loading.discard(digest)
            self._soon.discard(digest)
            if isinstance(result, Resident):
                self.ready[digest] = result
            else:
                self.failed[digest] = Failure(result, self._clock() + FORGET_AFTER)
        return [digest for digest, _ in finished]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        if self._backbone.kernels is not None:
            self._backbone.kernels.alone()
        give_way_by(self.turns.wait)

    def _work(self, digest: str) -> None:
        self._load_one(digest)  # holds nothing of the form afterwards, so that what it was read into can be given back
        self._tidy_in_quiet()

    def _load_one(self, digest: str) -> None:
        with self._lock:
            self._queued -= 1
        kept = self._kept(digest)
        result = kept or self._attempt(digest)
        fused = result.fused if isinstance(result, Resident) else None  # a slot takes it away
        with self._lock:
            self._finished.append((digest, result))
            self._lock.notify_all()
        self._on_done()
        if self._ready_forms is not None and kept is None and isinstance(result, Resident) and fused is not None:
            self._unkept.append((result, fused))

    def _tidy_in_quiet(self) -> None:
        """Once nobody asked for a while, or at the end, writes what was loaded, which would take its time from the
        first answers, and gives back what loading freed. Forms that wait for that hold memory, so there are few."""
        while True:
            with self._lock:
                asked = self._lock.wait_for(lambda: self._queued or self._closed, _QUIET)
            if asked and not self._closed and len(self._unkept) <= _UNKEPT:
                return
            if not self._unkept:
                break
            self._keep(*self._unkept.popleft())
        if self._ready_forms is not None:
            self._ready_forms.give_back()
        if not self._closed:
            give_way()
            give_back_freed()

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
            give_way()
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
