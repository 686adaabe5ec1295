"""Products of bf16 for training on a CPU that does not multiply bf16: in fp32, rounded once.

There oneDNN emulates them for torch, which takes several times as long (docs/decisions/0012). Every product of decoder
and adapters that learns is asked for here; elsewhere it is torch's own. Fp32 copies are gone when the product is there,
and for the backward pass they are made again.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N,K], bias [N] -> [..., N]."""
    if not wanted(x.dtype, x.device):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """a [S,M,K], b [S,K,N] -> [S,M,N]."""
    if not wanted(a.dtype, a.device):
        return torch.bmm(a, b)
    return _Batch.apply(None, a, b)  # type: ignore[no-any-return, no-untyped-call]


def baddbmm(added: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same, beginning with ``added`` [S,M,N] or [S,1,N]."""
    if not wanted(a.dtype, a.device):
        return torch.baddbmm(added, a, b)
    return _Batch.apply(added, a, b)  # type: ignore[no-any-return, no-untyped-call]


def attention(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """torch's fused one, whose forward pass alone is as fast in bf16."""
    if wanted(q.dtype, q.device) and torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v)):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).bfloat16()
    return F.scaled_dot_product_attention(q, k, v, **how)


def wanted(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this dtype are multiplied faster as fp32 there. Not while the engine answers: it has kernels
    of its own, and without them a row's sums would have another order in company."""
    return (
        dtype == torch.bfloat16 and device.type == "cpu" and not torch.is_inference_mode_enabled() and not _multiplies()
    )


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for it. One that is no x86 is believed to."""
    can = torch.cpu.get_capabilities()
    return can.get("architecture") != "x86_64" or any(can.get(kind) for kind in ("avx512_bf16", "amx_bf16"))


_multiplies = cache(multiplies_bf16)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).bfloat16()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        y = grads[0].float().flatten(0, -2)
        return (
            (y @ weight.float()).bfloat16().view_as(x) if to_x else None,
            (y.T @ x.flatten(0, -2).float()).bfloat16() if to_weight else None,
            y.sum(0).bfloat16() if to_bias else None,
        )


class _Batch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, added: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.added = None if added is None else added.shape
        if added is None:
            return torch.bmm(a.float(), b.float()).bfloat16()
        return torch.baddbmm(added.float(), a.float(), b.float()).bfloat16()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        to_added, to_a, to_b = ctx.needs_input_grad
        y = grads[0].float()
        return (
            y.sum_to_size(ctx.added).bfloat16() if to_added else None,
            torch.bmm(y, b.float().mT).bfloat16() if to_a else None,
            torch.bmm(a.float().mT, y).bfloat16() if to_b else None,
        )
