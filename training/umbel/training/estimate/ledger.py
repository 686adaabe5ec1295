"""Counts the bytes of tensors that live, as operations make them and as they are freed."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is made while it is on, apart from ``known``: storages, each counted once, however many views it has.

    ``trained`` are the tensors that get a gradient, each with what a byte of it weighs: sharding divides gradients, and
    masters may be wider than what is computed with. ``peak`` is the largest sum over time of activations and weighed
    gradients. ``products`` are the different sizes of matrix products, ``operations`` all their multiplications and
    additions. Works on real tensors as on fake ones.
    """

    def __init__(self, known: Iterable[Tensor], trained: Mapping[Tensor, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations = 0
        self.gradients = self.peak = 0.0
        self.products: set[tuple[torch.Size, ...]] = set()
        self.operations = 0
        self._sizes: dict[int, int] = {}
        self._weights: dict[int, float] = {}
        self._storages = [tensor.untyped_storage() for tensor in known]  # held: an id is one's own only while one lives
        self._known = {id(storage) for storage in self._storages}
        self._trained = trained
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(self._is_gradient)  # type: ignore[no-untyped-call]
            for tensor in trained
        ]

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if getattr(function, "overloadpacket", None) in _PRODUCTS:
            self.products.add(tuple(each.shape for each in args if isinstance(each, Tensor)))
            self.operations += 2 * made.numel() * _factors(function, args)[0].shape[-1]
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
        if key in self._weights:
            self.gradients -= size * self._weights.pop(key)
        else:
            self.activations -= size

    def _is_gradient(self, tensor: Tensor) -> None:
        assert tensor.grad is not None
        key = id(tensor.grad.untyped_storage())
        if key in self._sizes and key not in self._weights:
            self._weights[key] = self._trained[tensor]
            self.activations -= self._sizes[key]
            self.gradients += self._sizes[key] * self._weights[key]
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self.activations + self.gradients)


def _factors(function: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The two that are multiplied; some products add a third tensor, which comes first."""
    return args[-2:] if len(args) == 2 else args[1:3]


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    return sum({id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}.values())
