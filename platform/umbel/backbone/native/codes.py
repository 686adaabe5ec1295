"""Quantised linears by ``linear.c``: codes of 8 or 4 bits, read once for each step and made bf16 where they are used.

Shape letters here:  N output features   K input features   G groups of inputs   B rows
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.backbone.linears import PackedLinear, no_gradient
from umbel.backbone.native.kernels import COUNT, POINTER, THREADS, Kernels
from umbel.backbone.native.linear import COLUMNS, in_blocks

_TILE = 8
"""``TILE`` of linear.c."""


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


class NativeCodes(PackedLinear):
    """Codes in the kernel's order, as large as they were but for what fills up the last block."""

    def __init__(self, held: Codes, bias: nn.Parameter | None, kernels: Kernels) -> None:
        d_out, d_in = held.codes.shape
        super().__init__(d_in, d_out, bias)
        self._run = kernels.library.umbel_codes
        self._run.argtypes = [
            POINTER, COUNT, COUNT, COUNT, POINTER, COUNT, POINTER, POINTER, POINTER, POINTER, POINTER,
            POINTER, THREADS,
        ]  # fmt: skip
        self.group = d_in // held.scales.shape[1]
        blocks = in_blocks(held.codes)
        self.register_buffer("codes", blocks if held.table is None else _two_in_a_byte(blocks))
        self.register_buffer("scales", _by_block(held.scales))
        self.register_buffer("zeros", None if held.zeros is None else _by_block(held.zeros))
        self.register_buffer("table", None if held.table is None else torch.tensor(held.table, dtype=torch.float32))

    @staticmethod
    def fits(dtype: torch.dtype, device: torch.device, d_in: int, kernels: Kernels) -> bool:
        """Whether this processor has the instructions, and the weight an even number of inputs."""
        return kernels.multiplies and kernels.fit(dtype, device) and d_in % 2 == 0

    def held(self) -> dict[str, int | None]:
        """Fields of ``Product`` of linear.c."""
        names = {"w": "codes", "scales": "scales", "zeros": "zeros", "table": "table"}
        return {"group": self.group, **{field: _at(self._buffers[name]) for field, name in names.items()}}

    def forward(self, x: Tensor, decoding: int | None = None) -> Tensor:
        """As every packed linear; a row has its bits in any company, so prompts need no way of their own."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise no_gradient()
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.d_out)
        rows, threads = x.numel() // self.d_in, torch.get_num_threads()
        room = x.new_empty(threads * self.d_in * COLUMNS) if rows > _TILE else None
        held = self._buffers
        self._run(
            x.data_ptr(), rows, self.d_in, self.d_out, _at(held["codes"]), self.group, _at(held["scales"]),
            _at(held["zeros"]), _at(held["table"]), _at(room), _at(self.bias), y.data_ptr(), threads,
        )  # fmt: skip
        return y


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _two_in_a_byte(blocks: Tensor) -> Tensor:
    """[blocks, K/2, columns, 2] -> [blocks, K/2, columns]: of 32 numbers the first 16 are low nibbles."""
    halves = blocks.view(*blocks.shape[:2], -1, 2, 16)
    return (halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)).flatten(2).contiguous()


def _by_block(scales: Tensor) -> Tensor:
    """[N,G] -> [blocks, G, columns]; 0 where a block is filled up."""
    filled = F.pad(scales.to(torch.bfloat16), (0, 0, 0, -scales.shape[0] % COLUMNS))
    return filled.view(-1, COLUMNS, scales.shape[1]).transpose(1, 2).contiguous()
