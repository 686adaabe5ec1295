"""Gradients of what every process holds whole: one flat sum, in a fixed order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from umbel.training.distributed.group import Group


def add_gradients(tensors: Sequence[Tensor], group: Group) -> None:
    """Each tensor's gradient becomes the sum over the processes; one that no process has stays None.

    A process that saw no row of an adapter has no gradient of it: it gives zeros. As no tensor is one process's alone,
    the flags of who has what travel in the same message.
    """
    if group.size == 1 or not tensors:
        return
    there = torch.tensor([float(tensor.grad is not None) for tensor in tensors])
    parts = [tensor.new_zeros(tensor.numel()) if tensor.grad is None else tensor.grad.flatten() for tensor in tensors]
    flat = torch.cat([*parts, there.to(parts[0])])
    group.add(flat)
    *sums, held = flat.split([*(tensor.numel() for tensor in tensors), len(tensors)])  # type: ignore[no-untyped-call]
    for tensor, found, anybody in zip(tensors, sums, held.tolist(), strict=True):
        tensor.grad = found.view_as(tensor).clone() if anybody else None
