"""Memory of a stack of adapters: ``tensors[key][slot]``, with room for more slots than are used."""

import mmap
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from umbel.adapters.method import Fused, Key
from umbel.backbone.pages import can_reserve, give_back, reserve, whole_pages


class Rooms(ABC):
    tensors: Fused
    held: int = 0
    """Slots that take memory."""
    moves: int = 0
    """How often tensors were laid out anew: pointers into them from before are stale."""

    @abstractmethod
    def need(self, slots: int) -> None:
        """Says that so many slots, one more than before, will be written."""

    @abstractmethod
    def trim(self, used: int) -> None:
        """Says that only the first ``used`` slots are needed any more."""


class Reserved(Rooms):
    """Addresses for all slots that there can ever be; a slot takes memory once it is written, and nothing moves."""

    def __init__(self, example: Fused, most: int) -> None:
        """Raises OSError where the system promises no more memory than it has."""
        self.most = most
        self._starts: dict[Key, int] = {}
        end = 0
        for key, tensor in example.items():
            self._starts[key], end = end, end + whole_pages(most * _nbytes(tensor))
        self._pages = reserve(max(end, mmap.PAGESIZE))
        self.tensors = {key: self._tensor(key, tensor) for key, tensor in example.items()}

    @torch.inference_mode(False)
    def _tensor(self, key: Key, tensor: Tensor) -> Tensor:
        """May be written outside of inference mode, too."""
        size, count = (self.most, *tensor.shape), self.most * tensor.numel()
        if not count:
            return torch.zeros(size, dtype=tensor.dtype)
        return torch.frombuffer(self._pages, dtype=tensor.dtype, count=count, offset=self._starts[key]).view(size)

    def need(self, slots: int) -> None:
        assert slots <= self.most, "the budget holds no more"
        self.held = max(self.held, slots)

    def trim(self, used: int) -> None:
        """Memory of one slot is kept for the next adapter; of the others the whole pages go back."""
        if self.held > used + 1:
            for key, tensor in self.tensors.items():
                size = _nbytes(tensor[0])
                give_back(self._pages, self._starts[key] + (used + 1) * size, (self.held - used - 1) * size)
            self.held = used + 1


class Doubling(Rooms):
    """Copied into twice as much when full, and into half of it with a quarter in use."""

    def __init__(self, example: Fused) -> None:
        self.tensors = {key: _zeros(tensor, 1) for key, tensor in example.items()}
        self.held = 1

    def need(self, slots: int) -> None:
        if slots > self.held:
            self._resize(2 * self.held, slots - 1)

    def trim(self, used: int) -> None:
        if 0 < 4 * used <= self.held:
            self._resize(2 * used, used)

    def _resize(self, slots: int, used: int) -> None:
        """Tensor by tensor, so that never two copies of all are held. If memory ends half way, ``held`` is unchanged
        and the next try starts anew."""
        self.moves += 1
        for key, tensor in self.tensors.items():
            grown = _zeros(tensor[0], slots)
            grown[:used] = tensor[:used]
            self.tensors[key] = grown
        self.held = slots


def rooms(example: Fused, most: int) -> Rooms:
    """For adapters of the shapes of ``example``, ``most`` of which the budget can hold."""
    if all(can_reserve(tensor.device) for tensor in example.values()):
        try:
            return Reserved(example, most)
        except OSError:  # vm.overcommit_memory=2, or a limit on addresses
            pass
    return Doubling(example)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@torch.inference_mode(False)
def _zeros(tensor: Tensor, slots: int) -> Tensor:
    """May be written outside of inference mode, too."""
    return torch.zeros(slots, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
