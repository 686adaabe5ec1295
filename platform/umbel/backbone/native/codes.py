"""Quantised linears by ``linear.c``: codes of 8 or 4 bits, read once for each step and made bf16 where they are used.

Shape letters here:  N output features   K input features   G groups of inputs   B rows
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.backbone.native.kernels import Kernels
from umbel.backbone.native.linear import in_blocks
from umbel.backbone.native.product import COLUMNS, NativeLinear, at


@dataclass(frozen=True, slots=True)
class Codes:
    """w = table[code] * scale + zero; without a table, w = code * scale."""

    codes: Tensor
    """[N,K] int8, or uint8 below 16 where there is a table."""
    scales: Tensor
    """[N,G] bf16; without a table G is 1."""
    zeros: Tensor | None = None
    """[N,G] bf16."""
    table: tuple[float, ...] | None = None
    """What each of 16 codes stands for."""


class NativeCodes(NativeLinear):
    """Codes in the kernel's order, as large as they were but for what fills up the last block."""

    of_codes = True

    def __init__(self, held: Codes, bias: nn.Parameter | None, kernels: Kernels) -> None:
        d_out, d_in = held.codes.shape
        super().__init__(d_in, d_out, bias, kernels)
        self.group = d_in // held.scales.shape[1]
        blocks = in_blocks(held.codes)
        self.register_buffer("codes", blocks if held.table is None else _two_in_a_byte(blocks))
        self.register_buffer("scales", _by_block(held.scales))
        self.register_buffer("zeros", None if held.zeros is None else _by_block(held.zeros))
        self.register_buffer("table", None if held.table is None else torch.tensor(held.table, dtype=torch.float32))

    def held(self) -> dict[str, int | None]:
        names = {"w": "codes", "scales": "scales", "zeros": "zeros", "table": "table"}
        return {"group": self.group, **{field: at(self._buffers[name]) for field, name in names.items()}}


def _two_in_a_byte(blocks: Tensor) -> Tensor:
    """[blocks, K/2, columns, 2] -> [blocks, K/2, columns]: of 32 numbers the first 16 are low nibbles."""
    halves = blocks.view(*blocks.shape[:2], -1, 2, 16)
    return (halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)).flatten(2).contiguous()


def _by_block(scales: Tensor) -> Tensor:
    """[N,G] -> [blocks, G, columns]; 0 where a block is filled up."""
    filled = F.pad(scales.to(torch.bfloat16), (0, 0, 0, -scales.shape[0] % COLUMNS))
    return filled.view(-1, COLUMNS, scales.shape[1]).transpose(1, 2).contiguous()
