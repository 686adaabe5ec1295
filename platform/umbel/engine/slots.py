"""The bank of resident adapters: one stack for each signature, least recently used adapters leave first.

Slots of a stack have no hole between them, and adapters worn by running rows drift to its front, so that a step
multiplies with a contiguous view and copies no weight. An adapter is identified by its digest and never changes;
one that is worn is pinned. Tensors move only between steps, by the thread that owns the engine.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator

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
        self.lm_head = any(layer == LM_HEAD for layer, _ in first.fused)

    @property
    def tensors(self) -> Fused:
        return self.rooms.tensors

    def add(self, resident: Resident) -> None:
        """Copies its fused tensors into the next slot; they are dropped."""
        assert resident.fused is not None
        slot = len(self.members)
        self.rooms.need(slot + 1)
        for key, tensor in resident.fused.items():
            self.tensors[key][slot] = tensor
        resident.stack, resident.slot, resident.fused = self, slot, None
        self.members.append(resident)
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
        for tensor in self.tensors.values():
            kept = tensor[a.slot].clone()
            tensor[a.slot] = tensor[b.slot]
            tensor[b.slot] = kept
        a.slot, b.slot = b.slot, a.slot
        self.members[a.slot], self.members[b.slot] = a, b
        self.version = next(_VERSIONS)

    def _copy(self, source: int, target: int) -> None:
        for tensor in self.tensors.values():
            tensor[target] = tensor[source]


def _acts(batch: type[Batch]) -> bool:
    return any(getattr(batch, site) is not getattr(Sites, site) for site in _STEP_SITES)


class Bank:
    """All residents within ``budget`` bytes."""

    def __init__(self, budget: int, on_evict: Callable[[str], None] = lambda digest: None) -> None:
        self.budget = budget
        self.used = 0
        self.residents: dict[str, Resident] = {}
        self.stacks: dict[Hashable, Stack] = {}
        self._on_evict = on_evict
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
        while self.used + resident.nbytes > self.budget:
            self.evict(min(self._idle(), key=lambda idle: idle.last_used))
        if resident.fused:
            stack = self.stacks.get(resident.signature)
            if stack is None:
                most = self.budget // max(1, sum(tensor.nbytes for tensor in resident.fused.values()))
                stack = self.stacks[resident.signature] = Stack(resident, max(1, most))
            stack.add(resident)
        self.residents[resident.digest] = resident
        self.used += resident.nbytes
        self.touch(resident)

    def evict(self, resident: Resident) -> None:
        """Frees an idle adapter's slot."""
        assert not resident.worn, "a worn adapter is pinned"
        stack = resident.stack
        if stack is not None:
            stack.remove(resident)
            if not stack.members:
                del self.stacks[resident.signature]
        del self.residents[resident.digest]
        self.used -= resident.nbytes
        self._on_evict(resident.digest)

    def pin(self, resident: Resident) -> None:
        if not resident.worn and resident.stack is not None:
            resident.stack.bring_forward(resident)
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
