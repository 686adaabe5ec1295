"""The norm of a gradient that lies in parts on several processes, and in one piece where it is small."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_TINY = 1e-6
"""What torch's own ``clip_grad_norm_`` adds to a norm before dividing."""


def clip(tensors: Sequence[Tensor], limit: float) -> float:
    """Scales gradients so that their common norm is at most ``limit``; returns the norm before, everywhere alike."""
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if not sharded:
        return float(torch.nn.utils.clip_grad_norm_(tensors, limit))
    whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    norm: float = (_norm(sharded) ** 2 + _norm(whole) ** 2) ** 0.5
    if norm + _TINY > limit:
        for tensor in tensors:
            assert tensor.grad is not None
            tensor.grad.mul_(limit / (norm + _TINY))
    return norm


def _norm(tensors: Sequence[Tensor]) -> float:
    found = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors if tensor.grad is not None])
    return float(found.full_tensor() if isinstance(found, DTensor) else found)
