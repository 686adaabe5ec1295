"""The bank of resident adapters: one stack for each signature, least recently used adapters leave first.

Slots of a stack have no hole between them. Where no kernel reads them by their addresses, adapters worn by running rows
drift to its front, so that a step multiplies with a contiguous view and copies no weight. An adapter is identified by
its digest and never changes; one that is worn is pinned. Tensors move only between steps, by the thread that owns the
engine.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor

from umbel.adapters.method import Batch, Fused, Method
from umbel.adapters.sites import LM_HEAD, Sites
from umbel.core.errors import Unavailable
from umbel.core.shape import BackboneShape
from umbel.engine.resident import Resident
from umbel.engine.rooms import rooms

_STEP_SITES = ("embed", "input", "linear", "attend", "after")
_VERSIONS = itertools.count()


class Stack:
    """Adapters of equal shapes; ``tensors[key][slot]`` is one adapter's. ``most`` is how many there can be."""

    def __init__(self, first: Resident, most: int) -> None:
        assert first.fused is not None
        self.method: Method = first.adapter.method
        self.shape: BackboneShape = first.adapter.weights.shape
        self.number = next(_VERSIONS)
        """Tells stacks apart and orders them."""
        self.members: list[Resident] = []
        self.version = next(_VERSIONS)
        """Changes with what a slot means, and is never the same for two stacks; layouts of another are stale."""
        self.rooms = rooms(first.fused, most)
        self.acts = _acts(self.method.batch)
        """Whether it acts inside a step; a prefix acts at admission only."""
        self.reads_anywhere = False
        """Whether worn slots may lie apart."""
        self.lm_head = any(layer == LM_HEAD for layer, _ in first.fused)

    @property
    def tensors(self) -> Fused:
        return self.rooms.tensors

    def add(self, resident: Resident) -> None:
        """Copies its fused tensors into the next slot; they are dropped."""
        slot = len(self.members)
        self.rooms.need(slot + 1)
        self.members.append(resident)
        self._fill(slot, resident)

    def replace(self, gone: Resident, resident: Resident) -> None:
        """The same into the slot of one that leaves."""
        slot, gone.stack, gone.slot = gone.slot, None, -1
        self.members[slot] = resident
        self._fill(slot, resident)

    def _fill(self, slot: int, resident: Resident) -> None:
        fused = resident.fused
        assert fused is not None
        torch._foreach_copy_(self._of(slot), [fused[key] for key in self.tensors])
        resident.stack, resident.slot, resident.fused = self, slot, None
        self.version = next(_VERSIONS)

    def remove(self, resident: Resident) -> None:
        """The last member moves into the hole."""
        last = self.members[-1]
        if last is not resident:
            self._copy(last.slot, resident.slot)
            self.members[resident.slot], last.slot = last, resident.slot
        self.members.pop()
        resident.stack, resident.slot = None, -1
        self.rooms.trim(len(self.members))
        self.version = next(_VERSIONS)

    def bring_forward(self, resident: Resident) -> None:
        """Swaps a newly worn adapter with an idle one before it, if it lies apart from those already worn."""
        worn = [other.slot for other in self.members if other.worn and other is not resident]
        if not worn or resident.slot <= max(worn) + 1:
            return
        idle = next(other for other in self.members if not other.worn)
        self._swap(idle, resident)

    def alone(self, resident: Resident) -> Fused:
        """One adapter's tensors as a stack of one; views."""
        return {key: tensor[resident.slot : resident.slot + 1] for key, tensor in self.tensors.items()}

    def _swap(self, a: Resident, b: Resident) -> None:
        kept = [tensor.clone() for tensor in self._of(a.slot)]
        self._copy(b.slot, a.slot)
        torch._foreach_copy_(self._of(b.slot), kept)
        a.slot, b.slot = b.slot, a.slot
        self.members[a.slot], self.members[b.slot] = a, b
        self.version = next(_VERSIONS)

    def _copy(self, source: int, target: int) -> None:
        torch._foreach_copy_(self._of(target), self._of(source))

    def _of(self, slot: int) -> list[Tensor]:
        return [tensor[slot] for tensor in self.tensors.values()]


def _acts(batch: type[Batch]) -> bool:
    return any(getattr(batch, site) is not getattr(Sites, site) for site in _STEP_SITES)


class Bank:
    """All residents within ``budget`` bytes."""

    def __init__(
        self,
        budget: int,
        on_evict: Callable[[str], None] = lambda digest: None,
        reads_anywhere: Callable[[Stack], bool] = lambda stack: False,
    ) -> None:
        self.budget = budget
        self.used = 0
        self.residents: dict[str, Resident] = {}
        self.stacks: dict[Hashable, Stack] = {}
        self._on_evict, self._reads_anywhere = on_evict, reads_anywhere
        self._tick = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self.residents

    def get(self, digest: str) -> Resident:
        return self.residents[digest]

    def has_room(self, nbytes: int, *, evicting: bool) -> bool:
        """Whether so many bytes fit, as it is or after evicting what nobody wears."""
        idle = sum(resident.nbytes for resident in self._idle()) if evicting else 0
        return self.used - idle + nbytes <= self.budget

    def insert(self, resident: Resident) -> None:
        """Puts a ready adapter into a slot, evicting the least recently used idle ones as far as needed.

        Raises Unavailable (``adapter_too_large``) if it can never fit. Call ``has_room`` first.
        """
        if resident.nbytes > self.budget:
            raise too_large(resident, self.budget)
        hole: Resident | None = None
        while self.used + resident.nbytes > self.budget:
            oldest = min(self._idle(), key=lambda idle: idle.last_used)
            if hole is None and resident.fused and oldest.signature == resident.signature:
                hole = oldest
                self._forget(oldest)
            else:
                self.evict(oldest)
        if resident.fused and hole is not None and hole.stack is not None:
            hole.stack.replace(hole, resident)
        elif resident.fused:
            self._stack_for(resident, resident.fused).add(resident)
        self.residents[resident.digest] = resident
        self.used += resident.nbytes
        self.touch(resident)

    def _stack_for(self, resident: Resident, fused: Fused) -> Stack:
        if resident.signature not in self.stacks:
            most = self.budget // max(1, sum(tensor.nbytes for tensor in fused.values()))
            stack = self.stacks[resident.signature] = Stack(resident, max(1, most))
            stack.reads_anywhere = self._reads_anywhere(stack)
        return self.stacks[resident.signature]

    def evict(self, resident: Resident) -> None:
        """Frees an idle adapter's slot."""
        assert not resident.worn, "a worn adapter is pinned"
        stack = resident.stack
        if stack is not None:
            stack.remove(resident)
            if not stack.members:
                del self.stacks[resident.signature]
        self._forget(resident)

    def _forget(self, resident: Resident) -> None:
        del self.residents[resident.digest]
        self.used -= resident.nbytes
        self._on_evict(resident.digest)

    def pin(self, resident: Resident) -> None:
        stack = resident.stack
        if not resident.worn and stack is not None and not stack.reads_anywhere:
            stack.bring_forward(resident)
        resident.worn += 1
        self.touch(resident)

    def unpin(self, resident: Resident) -> None:
        resident.worn -= 1
        self.touch(resident)

    def touch(self, resident: Resident) -> None:
        """The most recently used one is evicted last."""
        self._tick += 1
        resident.last_used = self._tick

    def _idle(self) -> Iterator[Resident]:
        return (resident for resident in self.residents.values() if not resident.worn)


def too_large(resident: Resident, budget: int) -> Unavailable:
    return Unavailable(
        f"adapter {resident.adapter.name or resident.digest} takes {resident.nbytes} bytes, "
        f"the engine keeps {budget} for all adapters.",
        code="adapter_too_large",
        hint="start the server with more memory for adapters",
    )
