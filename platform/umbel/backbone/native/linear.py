"""Frozen bf16 weights for ``linear.c``: compact where they can be, and else as they are; and embeddings out of them.

Shape letters here:  N output features   K input features   B rows   T tokens   H hidden   V vocabulary
"""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.backbone.native.kernels import COUNT, POINTER, THREADS, Kernels
from umbel.backbone.native.product import COLUMNS, NativeLinear, Product, at

_FOUR, _HIGHS = 4, 16
"""``FOUR`` and ``HIGHS`` of forms.h."""
_HELD = {"w": "packed", "highs": "highs", "first": "first", "others": "others", "whole": "whole"}
_MOST_OTHERS = 1 / 16
"""Share of pairs that stand whole, from which on a weight stays as it is."""


class NativeWeight(NativeLinear):
    """Gives its numbers back as they were."""

    @property
    def weight(self) -> Tensor:
        """[N,K], put together anew."""
        return self.rows(torch.arange(self.d_out))

    def rows(self, outputs: Tensor) -> Tensor:
        """The weights [...,K] of these output features."""
        raise NotImplementedError


class NativeDense(NativeWeight):
    """A weight in the kernel's order, as large as it was but for what fills up its last block."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kernels: Kernels) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias, kernels)
        self.register_buffer("packed", in_blocks(weight.detach()))

    def rows(self, outputs: Tensor) -> Tensor:
        pairs = self.get_buffer("packed").view(torch.int32).squeeze(-1)
        found = pairs[outputs // COLUMNS, :, outputs % COLUMNS]
        return found.view(self.get_buffer("packed").dtype)

    def held(self) -> dict[str, int | None]:
        return {"w": at(self._buffers["packed"])}


class NativeCompact(NativeWeight):
    """A weight in three quarters of its bytes, to the bit (``compact.c``)."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kernels: Kernels) -> None:
        """Raises ValueError where the weight's numbers have too many high bytes."""
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias, kernels)
        weight, blocks, threads = weight.detach().contiguous(), -(-d_out // COLUMNS), torch.get_num_threads()
        count = kernels.library.umbel_count_others
        count.restype, count.argtypes = ctypes.c_int64, [POINTER, COUNT, COUNT, POINTER, POINTER, THREADS]
        self.register_buffer("highs", torch.empty(blocks, _HIGHS, dtype=torch.uint8))
        self.register_buffer("first", torch.empty(blocks + 1, dtype=torch.int32))
        highs, first = self.get_buffer("highs"), self.get_buffer("first")
        others = count(weight.data_ptr(), d_out, d_in, highs.data_ptr(), first.data_ptr(), threads)
        if others > _MOST_OTHERS * blocks * d_in / 2:
            raise ValueError(f"{others} of {blocks * d_in // 2} pairs of inputs have other high bytes")
        four = _FOUR * 2 * COLUMNS * 3 // 2
        self.register_buffer("packed", torch.empty(blocks, d_in // (2 * _FOUR), four, dtype=torch.uint8))
        self.register_buffer("others", torch.empty(others + blocks, dtype=torch.int32))
        self.register_buffer("whole", torch.empty(others, COLUMNS, 2, dtype=weight.dtype))
        self._rows = kernels.library.umbel_compact_rows
        self._rows.argtypes = [ctypes.POINTER(Product), POINTER, COUNT, POINTER, THREADS]
        fill = kernels.library.umbel_compact
        fill.argtypes = [POINTER, ctypes.POINTER(Product), THREADS]
        fill(weight.data_ptr(), ctypes.byref(self._known()), threads)

    @staticmethod
    def fits(dtype: torch.dtype, device: torch.device, d_in: int, kernels: Kernels) -> bool:
        """Whether this processor has the instructions, and the weight a multiple of 8 inputs."""
        return NativeLinear.fits(dtype, device, d_in, kernels) and d_in % (2 * _FOUR) == 0

    def rows(self, outputs: Tensor) -> Tensor:
        """Raises IndexError where there is no such feature."""
        outputs, threads = outputs.to(torch.int64).contiguous(), torch.get_num_threads()
        found = torch.empty(*outputs.shape, self.d_in, dtype=torch.bfloat16)
        known = ctypes.byref(self._known())
        if not self._rows(known, outputs.data_ptr(), outputs.numel(), found.data_ptr(), threads):
            raise IndexError(f"{outputs.min()} to {outputs.max()} are not all of {self.d_out} output features")
        return found

    def held(self) -> dict[str, int | None]:
        held = self._buffers
        return {field: at(held[name]) for field, name in _HELD.items()}

    def _known(self) -> Product:
        return Product(d_in=self.d_in, d_out=self.d_out, **self.held())


class NativeEmbedding(nn.Module):
    """The embeddings that a tied lm_head multiplies with, read where it holds them."""

    def __init__(self, lm_head: NativeWeight) -> None:
        super().__init__()
        self.lm_head = lm_head

    @property
    def weight(self) -> Tensor:
        """[V,H], put together anew."""
        return self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T] -> [B,T,H]."""
        return self.lm_head.rows(tokens)


def native_linear(
    weight: Tensor, bias: nn.Parameter | None, kernels: Kernels, *, compact: bool = True
) -> NativeWeight | None:
    """Compact where that can be; None where the kernels cannot hold the weight."""
    made = (weight.dtype, weight.device, weight.shape[1], kernels)
    if compact and NativeCompact.fits(*made):
        try:
            return NativeCompact(weight, bias, kernels)
        except ValueError:
            pass  # high bytes of an unusual spread
    return NativeDense(weight, bias, kernels) if NativeDense.fits(*made) else None


def in_blocks(weight: Tensor) -> Tensor:
    """[N,K] -> [blocks, K/2, columns, 2], zero in what fills up the last block."""
    d_out, d_in = weight.shape
    filled = F.pad(weight, (0, 0, 0, -d_out % COLUMNS))
    return filled.view(-1, COLUMNS, d_in // 2, 2).transpose(1, 2).contiguous()
