"""Adapters that are loaded or dropped by hand, without a request that wears them.

What is asked for waits in an inbox, which any thread may fill. Everything else happens between two steps, on the
engine's own thread, so that no tensor moves under a step.
"""

from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from umbel.core.errors import Conflict, UmbelError
from umbel.engine.loader import Loader
from umbel.engine.slots import Bank, too_large
from umbel.engine.waiting import Waiting


@dataclass(frozen=True, slots=True, eq=False)
class _Errand:
    digest: str
    warm: bool
    """False: unload."""
    done: "Future[bool]" = field(default_factory=Future)


class Warming:
    """Futures say whether anything changed: False where it was so already. A cancelled one is forgotten."""

    def __init__(self, bank: Bank, loader: Loader, waiting: Waiting, *, lookahead: int) -> None:
        self.bank, self.loader, self.waiting = bank, loader, waiting
        self._lookahead = lookahead
        self._inbox: deque[_Errand] = deque()
        self._loading: list[_Errand] = []

    def ask(self, digest: str, *, warm: bool) -> "Future[bool]":
        errand = _Errand(digest, warm)
        self._inbox.append(errand)
        return errand.done

    @property
    def busy(self) -> bool:
        return bool(self._inbox or self._loading)

    def wants(self, digest: str) -> bool:
        """Whether a load is to take a slot though no request waits for it."""
        return any(errand.digest == digest for errand in self._loading)

    def advance(self) -> None:
        """Takes what was asked since, and says what has come true. Comes before loaded adapters take their slots."""
        while self._inbox:
            self._take(self._inbox.popleft())
        for errand in self._loading:
            self._look(errand)
        self._loading = [errand for errand in self._loading if not errand.done.done()]

    def fail_all(self, error: UmbelError) -> None:
        left, self._loading = [*self._loading, *self._inbox], []
        self._inbox.clear()
        for errand in left:
            _fail(errand, error)

    def _take(self, errand: _Errand) -> None:
        resident = errand.digest in self.bank
        if errand.warm and resident:
            self.bank.touch(self.bank.get(errand.digest))
            _tell(errand, changed=False)
        elif errand.warm:
            self._loading.append(errand)
        else:
            self._unload(errand)

    def _look(self, errand: _Errand) -> None:
        """Starts its load, or finds it loaded, or learns why it cannot be."""
        digest = errand.digest
        if digest in self.bank:
            return _tell(errand, changed=True)
        ready = self.loader.ready.get(digest)
        if ready is not None:
            return _fail(errand, too_large(ready, self.bank.budget)) if ready.nbytes > self.bank.budget else None
        error = self.loader.failure(digest)
        if error is not None:
            return _fail(errand, error)
        if self.loader.busy < self._lookahead:
            self.loader.start(digest)
        return None

    def _unload(self, errand: _Errand) -> None:
        digest = errand.digest
        resident = self.bank.residents.get(digest)
        rows = (resident.worn if resident else 0) + len(self.waiting.of(digest))
        if rows or digest in self.loader.loading or self.wants(digest):
            return _fail(errand, _in_use(resident.adapter.name if resident else digest, rows))
        loaded = self.loader.ready.pop(digest, None)
        if resident is not None:
            self.bank.evict(resident)
        return _tell(errand, changed=resident is not None or loaded is not None)


def _tell(errand: _Errand, *, changed: bool) -> None:
    with suppress(InvalidStateError):  # nobody waits for it any more
        errand.done.set_result(changed)


def _fail(errand: _Errand, error: UmbelError) -> None:
    with suppress(InvalidStateError):
        errand.done.set_exception(error)


def _in_use(name: str, rows: int) -> Conflict:
    why = f"it is worn or awaited by {rows} of the rows" if rows else "it is being loaded"
    return Conflict(
        f"the adapter {name} cannot be unloaded: {why}.",
        code="adapter_in_use",
        hint="ask again when they are answered; promote another version first, so that no new ones come",
        retry_after=1.0,
    )
