"""Linears by ``linear.c``: bf16, without gradients, each row's bits its own in any company.

Shape letters here:  N output features   K input features   B rows   T tokens   H hidden   V vocabulary
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.backbone.linears import PackedLinear, no_gradient
from umbel.backbone.native.kernels import COUNT, POINTER, THREADS, Kernels

COLUMNS = 48
"""``COLUMNS`` of forms.h: outputs of a block."""


class NativeLinear(PackedLinear):
    """A weight in the kernel's order, as large as it was but for what fills up its last block."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kernels: Kernels) -> None:
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias)
        self._run = kernels.library.umbel_linear
        self._run.argtypes = [POINTER, COUNT, COUNT, COUNT, POINTER, POINTER, POINTER, THREADS]
        self.register_buffer("packed", in_blocks(weight.detach()))

    @staticmethod
    def fits(weight: Tensor, kernels: Kernels) -> bool:
        """Whether this processor has the instructions, and the weight an even number of inputs."""
        return kernels.multiplies and kernels.fit(weight.dtype, weight.device) and weight.shape[1] % 2 == 0

    @property
    def weight(self) -> Tensor:
        """[N,K], put together anew."""
        return self.get_buffer("packed").transpose(1, 2).reshape(-1, self.d_in)[: self.d_out]

    def rows(self, outputs: Tensor) -> Tensor:
        """The weights [...,K] of these output features."""
        pairs = self.get_buffer("packed").view(torch.int32).squeeze(-1)
        found = pairs[outputs // COLUMNS, :, outputs % COLUMNS]
        return found.view(self.get_buffer("packed").dtype)

    def held(self) -> dict[str, int | None]:
        """Fields of ``Product`` of linear.c."""
        return {"w": self.get_buffer("packed").data_ptr()}

    def forward(self, x: Tensor, decoding: int | None = None) -> Tensor:
        """As every packed linear; one of 121 calls of a step, so in as few of torch's as there can be."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise no_gradient()
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.d_out)
        bias, packed = self.bias, self._buffers["packed"]
        assert packed is not None
        self._run(
            x.data_ptr(), x.numel() // self.d_in, self.d_in, self.d_out, packed.data_ptr(),
            None if bias is None else bias.data_ptr(), y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y


class NativeEmbedding(nn.Module):
    """The embeddings that a tied lm_head multiplies with, read where it holds them."""

    def __init__(self, lm_head: NativeLinear) -> None:
        super().__init__()
        self.lm_head = lm_head

    @property
    def weight(self) -> Tensor:
        """[V,H], put together anew."""
        return self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T] -> [B,T,H]."""
        return self.lm_head.rows(tokens)


def in_blocks(weight: Tensor) -> Tensor:
    """[N,K] -> [blocks, K/2, columns, 2], zero in what fills up the last block."""
    d_out, d_in = weight.shape
    filled = F.pad(weight, (0, 0, 0, -d_out % COLUMNS))
    return filled.view(-1, COLUMNS, d_in // 2, 2).transpose(1, 2).contiguous()
