"""What every linear of ``linear.c`` shares, whatever form its weights have.

Shape letters here:  N output features   K input features   B rows
"""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from umbel.backbone.linears import PackedLinear, no_gradient
from umbel.backbone.native.kernels import COUNT, THREADS, Kernels

COLUMNS = 48
"""``COLUMNS`` of forms.h: outputs of a block."""


class Product(ctypes.Structure):
    """``Product`` of product.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_int64) for name in ("d_in", "d_out")),
        *((name, ctypes.c_void_p) for name in ("w", "bias", "room")),
        ("group", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scales", "zeros", "table")),
        *((name, ctypes.c_void_p) for name in ("highs", "first", "others", "whole", "next")),
    )


class NativeLinear(PackedLinear):
    """y = x W^T + b in bf16, without gradients, each row's bits its own in any company."""

    of_codes = False
    """Whether the weights are codes."""

    def __init__(self, d_in: int, d_out: int, bias: nn.Parameter | None, kernels: Kernels) -> None:
        super().__init__(d_in, d_out, bias)
        self._kernels = kernels
        self._run = kernels.library.umbel_linear
        self._run.argtypes = [ctypes.POINTER(Product), COUNT, THREADS]

    @staticmethod
    def fits(dtype: torch.dtype, device: torch.device, d_in: int, kernels: Kernels) -> bool:
        """Whether this processor has the instructions, and the weight an even number of inputs."""
        return kernels.multiplies and kernels.fit(dtype, device) and d_in % 2 == 0

    def held(self) -> Mapping[str, int | None]:
        """Fields of ``Product`` that tell the weights."""
        raise NotImplementedError

    def told(self, x: Tensor, y: Tensor, room: Tensor | None) -> Product:
        """For as many rows of x [B,K] and y [B,N] as the call says, and ``room`` is (``Kernels.linear_room``)."""
        return Product(
            x=x.data_ptr(), y=y.data_ptr(), d_in=self.d_in, d_out=self.d_out, bias=at(self.bias), room=at(room),
            **self.held(),
        )  # fmt: skip

    def forward(self, x: Tensor, decoding: int | None = None) -> Tensor:
        """As every packed linear; a row has its bits in any company, so prompts need no way of their own."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise no_gradient()
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.d_out)
        rows, threads = x.numel() // self.d_in, torch.get_num_threads()
        room = self._kernels.linear_room(rows, self.d_in, codes=self.of_codes)
        self._run(ctypes.byref(self.told(x, y, room)), rows, threads)
        return y


def at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
