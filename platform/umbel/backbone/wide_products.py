"""Products of bf16 matrices for training on a CPU that does not multiply bf16: in fp32, rounded once.

There oneDNN emulates them for torch, three times slower than what is done here (two cores of a Xeon without
AVX512-BF16). Packed linears do the same in the nearest cache, without gradients (``native/fp32_blocks.h``).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,  # forward it is as fast in bf16
}


class WideProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, products of bf16, backward ones too, are taken of fp32 copies that last as long as the product."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **kwargs)
        made = function(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})
        return made.bfloat16() if isinstance(made, Tensor) else tuple(each.bfloat16() for each in made)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def wants_wide_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this dtype are multiplied faster as fp32 there."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bf16()


def wide_products(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """For forward and backward passes, where they are wanted."""
    return WideProducts() if wants_wide_products(dtype, device) else nullcontext()  # type: ignore[no-untyped-call]


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for it. One that is no x86 is believed to."""
    can = torch.cpu.get_capabilities()
    return can.get("architecture") != "x86_64" or any(can.get(kind) for kind in ("avx512_bf16", "amx_bf16"))
