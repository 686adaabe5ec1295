"""The backbone's frozen linears behind one interface: dense, packed and quantised forms stand in for each other."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLinear(nn.Module):
    """y = x W^T + b with W [out, in] as loaded; gradients pass through to x."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=dtype, device=device), requires_grad=False)
        empty = torch.empty(d_out, dtype=dtype, device=device) if bias else None
        self.bias = nn.Parameter(empty, requires_grad=False) if empty is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def part(self, x: Tensor, rows: slice, *, bias: bool) -> Tensor:
        """The output features ``rows`` alone."""
        b = self.bias[rows] if bias and self.bias is not None else None
        return F.linear(x, self.weight[rows], b)


class PackedLinear(nn.Module):
    """The same product on a weight reordered once for oneDNN: 1.5 to 2.3 times faster at few rows on CPU.

    It has no gradient: under autograd oneDNN's operator would return None for x silently, so it raises instead.
    """

    def __init__(self, dense: DenseLinear, rows: int) -> None:
        super().__init__()
        self.d_out, self.d_in = dense.weight.shape
        packed = torch.ops.mkldnn._reorder_linear_weight(dense.weight.detach(), rows)
        self.packed = cast(Tensor, packed)
        self.bias = dense.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a packed linear has no gradient; load the backbone with packed=False to train")
        flat = x.reshape(-1, self.d_in)
        y = torch.ops.mkldnn._linear_pointwise(flat, self.packed, self.bias, "none", [], "")
        return cast(Tensor, y).view(*x.shape[:-1], self.d_out)

    def part(self, x: Tensor, rows: slice, *, bias: bool) -> Tensor:
        y: Tensor = self(x)
        if not bias and self.bias is not None:
            y = y - self.bias
        return y[..., rows]


Linear = DenseLinear | PackedLinear


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can hold packed weights of this dtype here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
