"""Who runs next: fair between adapters, exact about memory, and never waiting for a disk.

A waiting request is ready (its adapter is resident or loaded, and it fits), loading (others pass it), or blocked
(it lacks memory). Others may pass a blocked one ``patience`` times; then they wait too, so that rows leave and it
gets its turn.
"""

from collections.abc import Callable
from enum import Enum, auto

from umbel.backbone.backbone import Backbone
from umbel.core.errors import UmbelError
from umbel.engine.forward import Forward
from umbel.engine.limits import Limits, check_head
from umbel.engine.loader import Loader
from umbel.engine.requests import FinishReason
from umbel.engine.resident import Resident
from umbel.engine.row import Row
from umbel.engine.running import Plan, Running
from umbel.engine.slots import Bank, too_large
from umbel.engine.waiting import TOKEN_COST, Waiting
from umbel.engine.warming import Warming

Finish = Callable[[Row, FinishReason, UmbelError | None], None]


class _State(Enum):
    READY = auto()
    LOADING = auto()
    BLOCKED = auto()
    FAILED = auto()


class Scheduler:
    """Rows on their way from waiting to running to gone."""

    def __init__(
        self,
        backbone: Backbone,
        forward: Forward,
        bank: Bank,
        loader: Loader,
        limits: Limits,
        *,
        running: Running,
        clock: Callable[[], float],
        finish: Finish,
    ) -> None:
        self.backbone, self.forward, self.bank, self.loader, self.limits = backbone, forward, bank, loader, limits
        self.waiting, self.running = Waiting(), running
        self.warming = Warming(bank, loader, self.waiting, lookahead=limits.lookahead)
        self._clock, self._finish = clock, finish
        own = backbone.tokenizer.eos
        self._ends = frozenset(backbone.config.eos) | (frozenset() if own is None else {own})

    def plan(self) -> Plan:
        """Admits what can be and says what the next step computes."""
        self.warming.advance()
        self._take_loaded()
        self.running.grow()
        self.running.resume(self.limits.max_rows)
        if self._admit_ready() and self._expects() and self.loader.await_kept():
            self._take_loaded()
            self._admit_ready()
        if self.loader.take_turn():
            self._take_loaded()  # its rows begin with the next step, that this one is not longer still
        self._look_ahead()
        return self.running.plan(self.limits.step_tokens, self.waiting.served)

    def _admit_ready(self) -> bool:
        """Whether there is room for more rows."""
        while self._has_room():
            row = self._next()
            if row is None:
                break
            self._admit(row)
        return self._has_room()

    def _expects(self) -> bool:
        """Whether somebody waits for what is being loaded; what is warmed by hand delays no step."""
        return any(row.adapter in self.loader.loading for row in self.waiting.heads())

    def _has_room(self) -> bool:
        return len(self.running) < self.limits.max_rows and not self.running.preempted

    def leave(self, row: Row, *, tainted: bool = False) -> None:
        """Takes a row out, wherever it is; its memory is free and its adapter unpinned."""
        if row.leader is not None:
            row.leader.riders.remove(row)
            row.leader = None
        elif row.slot < 0 and row.saved is None:
            self.waiting.remove(row)
            return
        elif row.riders:
            self.running.hand_over(row)
        else:
            self.running.remove(row, tainted=tainted)
        self.waiting.ended(row)
        if row.resident is not None:
            self.bank.unpin(row.resident)

    def generated(self, row: Row) -> None:
        self.waiting.charge(row.adapter, TOKEN_COST)

    def _take_loaded(self) -> None:
        """Loaded adapters take free slots at once; where nobody wants one and no slot is free, it is dropped.

        One that is warmed by hand takes the slot of an idle one, if need be.
        """
        now = self._clock()
        for digest in self.loader.collect():
            for row in self.waiting.of(digest):
                row.marks.load_ended = now
        for digest, resident in list(self.loader.ready.items()):
            wanted = self.warming.wants(digest)
            if self.bank.has_room(resident.nbytes, evicting=wanted):
                self.bank.insert(self.loader.ready.pop(digest))
            elif not (wanted or self.waiting.of(digest)):
                del self.loader.ready[digest]

    def _look_ahead(self) -> None:
        """Loads what waiting requests will wear, and fails those whose load failed, even if no row is free."""
        for row in self.waiting.heads():
            self._resident(row)

    def _next(self) -> Row | None:
        """The fairest row that is ready."""
        passed: list[Row] = []
        for row in self.waiting.heads():
            state = self._state(row)
            if state is _State.READY:
                for other in passed:
                    other.bypassed += 1
                return row
            if state is _State.BLOCKED:
                if row.bypassed >= self.limits.patience:
                    return None
                passed.append(row)
        return None

    def _state(self, row: Row) -> _State:
        resident = self._resident(row)
        if isinstance(resident, _State):
            return resident
        if resident is not None and resident.head_only and self._mate_loads(row):
            return _State.LOADING
        try:
            self._fit(row, resident)
        except UmbelError as error:
            self._fail(row, error)
            return _State.FAILED
        return _State.READY if self._has_memory(row, resident) else _State.BLOCKED

    def _resident(self, row: Row) -> Resident | _State | None:
        """What the row will wear, or why that is not known yet. A failed load fails all who wait for it."""
        digest = row.adapter
        if digest is None:
            return None
        if digest in self.bank:
            return self.bank.get(digest)
        if digest in self.loader.ready:
            return self.loader.ready[digest]
        error = self.loader.failure(digest)
        if error is not None:
            for waiting in self.waiting.of(digest):
                self._fail(waiting, error)
            return _State.FAILED
        if digest in self.loader.loading or self.loader.busy < self.limits.lookahead:
            self.loader.start(digest)
            for waiting in self.waiting.of(digest):
                if waiting.marks.load_began is None:
                    waiting.marks.load_began = self._clock()
        return _State.LOADING

    def _fit(self, row: Row, resident: Resident | None) -> None:
        """Works out what the row needs. Raises UmbelError if it can never run."""
        virtual = 0
        if resident is not None:
            check_head(resident.adapter, row.request)
            if resident.nbytes > self.bank.budget:
                raise too_large(resident, self.bank.budget)
            virtual = resident.past_length + resident.num_virtual
        row.max_tokens = self.limits.check_length(row.request, virtual=virtual)
        row.prompt_places = virtual + len(row.request.tokens)
        row.reserved = row.prompt_places + row.max_tokens

    def _mate_loads(self, row: Row) -> bool:
        """Whether an adapter that may share the row's prompt is on its way. Only such a load is waited for: it ends."""
        for mate in _others(row):
            self._resident(mate)
        return any(mate.adapter in self.loader.loading for mate in _others(row))

    def _has_memory(self, row: Row, resident: Resident | None) -> bool:
        if not self.running.has_room(row):
            return False
        if resident is None or resident.digest in self.bank:
            return True
        return self.bank.has_room(resident.nbytes, evicting=True)

    def _admit(self, row: Row) -> None:
        resident = self._begin(row)
        self.running.add(row)
        self.waiting.started(row)
        self.forward.begin(row)
        if resident is not None and resident.head_only:
            self._take_along(row)

    def _begin(self, row: Row) -> Resident | None:
        """From the queue to an adapter that is pinned."""
        digest, resident = row.adapter, None
        self.waiting.remove(row)
        if digest is not None:
            if digest not in self.bank:
                self.bank.insert(self.loader.ready.pop(digest))
            resident = self.bank.get(digest)
            self.bank.pin(resident)
        row.begin(resident, row.max_tokens, self._ends, self.backbone.tokenizer)
        row.marks.admitted = self._clock()
        return resident

    def _take_along(self, leader: Row) -> None:
        """Rows that came with it and read the same hidden states ride along; the others run for themselves."""
        for mate in _others(leader):
            if self._rides(mate):
                self._begin(mate)
                mate.leader = leader
                leader.riders.append(mate)
                self.waiting.started(mate)

    def _rides(self, mate: Row) -> bool:
        resident = self._resident(mate)
        if not isinstance(resident, Resident) or not resident.head_only:
            return False
        try:
            self._fit(mate, resident)
        except UmbelError:
            return False  # it is told when its own turn comes
        return resident.digest in self.bank or self.bank.has_room(resident.nbytes, evicting=True)

    def _fail(self, row: Row, error: UmbelError) -> None:
        self.waiting.remove(row)
        self._finish(row, "error", error)


def _others(row: Row) -> list[Row]:
    """Mates whose output heads read the same tokens; none of a row that generates."""
    pooled = [mate for mate in row.mates if mate.generating is None and row.generating is None]
    return [mate for mate in pooled if mate is not row and mate.request.tokens == row.request.tokens]
