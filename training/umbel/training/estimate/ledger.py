"""Counts the bytes of tensors that live, as operations make them and as they are freed."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Sees what is made while it is on, apart from ``known``: storages, each counted once, however many views it has.

    Gradients are told apart from all else, since sharding divides them: ``peak`` is the largest sum over time of
    activations and ``1 / shards`` of the gradients. Works on real tensors as on fake ones.
    """

    def __init__(self, known: Iterable[Tensor] = (), *, trained: Iterable[Tensor] = (), shards: int = 1) -> None:
        super().__init__()
        self.activations = self.gradients = 0
        self.peak = 0.0
        self.shards = shards
        self._sizes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self._known = {id(tensor.untyped_storage()) for tensor in known}
        self._kept = list(known)  # an id is only one's own while one lives
        self._hooks = [tensor.register_post_accumulate_grad_hook(self._is_gradient) for tensor in trained]

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return made

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.activations += self._sizes[key]
        weakref.finalize(storage, self._freed, key)
        self._look()

    def _freed(self, key: int) -> None:
        size = self._sizes.pop(key)
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradients -= size
        else:
            self.activations -= size

    def _is_gradient(self, tensor: Tensor) -> None:
        assert tensor.grad is not None
        key = id(tensor.grad.untyped_storage())
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self.activations -= self._sizes[key]
            self.gradients += self._sizes[key]
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self.activations + self.gradients / self.shards)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    return sum({id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


FAKE = torch.device("cpu")
"""Fake tensors say they are on the CPU, so that the operations are those of the CPU."""
