"""Quantised linears: frozen weights of 8 or 4 bits. Activations, embeddings and norms stay in the backbone's dtype.

    int8   q in [-127, 127]   w = q * scale                  one scale per output feature
    int4   q in [0, 15]       w = (q - 8) * scale + zero     scale and zero per 32 inputs of a feature
    nf4    q in [0, 15]       w = NORMAL[q] * scale          one scale per 64 inputs of a feature; bitsandbytes

Two ways to multiply, by what they are for. Training (and whatever no kernel fits) makes the weight for each product
and has a gradient to x. Serving uses kernels that read the few bits and give a row the same bits in any company: this
project's own where the processor suits them, else those of torch (int8, int4) and bitsandbytes (nf4)
(docs/decisions/0011-quantised-backbones.md). All compute with the same weight: scales are held in the 16 bits that the
kernels want.

Shape letters here:  N output features   K input features   G groups of inputs
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.adapters import wide_products
from umbel.backbone.linears import DenseLinear, PackedLinear
from umbel.backbone.native import Codes, Kernels, NativeCodes
from umbel.core.bitsandbytes import own_kernels_only
from umbel.core.errors import ConfigError
from umbel.core.forms import Form

_GROUP = 32
"""Inputs that share int4's scale and zero point: as in llama.cpp's Q4_1, and a divisor of every Llama's widths."""
_BLOCK = 64
"""Inputs that share nf4's scale, as in QLoRA."""
_ALL = slice(None)
QUANTISED_SITES = ("qkv", "o", "gate_up", "down")
"""What of a layer is quantised. Embeddings and lm_head are not: adapters read, train and stand in for them."""


class QuantisedLinear(nn.Module):
    """y = x W^T + b on a weight that is made for the product and gone after it; gradients pass through to x."""

    def __init__(self, dense: DenseLinear) -> None:
        super().__init__()
        self.d_out, self.d_in = dense.weight.shape
        self.dtype = dense.weight.dtype
        self.bias = dense.bias

    def dequantised(self, dtype: torch.dtype, rows: slice = _ALL) -> Tensor:
        """W [N,K] of these output features, rounded once."""
        raise NotImplementedError

    def packed(self, kernels: Kernels | None = None) -> PackedLinear | None:
        """The same weight for a kernel, of these where they fit; None where none does. What is quantised here is used
        up."""
        if kernels is not None and NativeCodes.fits(self.dtype, self.get_buffer("codes").device, self.d_in, kernels):
            return NativeCodes(self.held(), self.bias, kernels)
        return self.library_kernel()

    def held(self) -> Codes:
        """What ``codes.py`` packs."""
        raise NotImplementedError

    def library_kernel(self) -> PackedLinear | None:
        """Torch's or bitsandbytes'; None where none fits."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """W as it is multiplied with: rounded to the backbone's dtype."""
        return self.dequantised(self.dtype)

    def forward(self, x: Tensor, decoding: int | None = None) -> Tensor:
        return self._product(x, _ALL, bias=True)

    def part(self, x: Tensor, rows: slice, *, bias: bool) -> Tensor:
        return self._product(x, rows, bias=bias)

    def _product(self, x: Tensor, rows: slice, *, bias: bool) -> Tensor:
        b = self.bias[rows] if bias and self.bias is not None else None
        return cast(Tensor, _Product.apply(x, b, self, rows))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """Keeps the quantised weight for the backward pass, and not the one that was made of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: QuantisedLinear, rows: slice) -> Tensor:
        ctx.linear, ctx.rows = linear, rows
        return wide_products.linear(x, linear.dequantised(linear.dtype, rows), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.linear.dequantised(ctx.linear.dtype, ctx.rows)
        return wide_products.linear(grads[0], weight.T), None, None, None


class Int8Linear(QuantisedLinear):
    def __init__(self, dense: DenseLinear) -> None:
        super().__init__(dense)
        weight = _wide(dense.weight)
        scale = _scale(weight.abs().amax(1) / 127, self.dtype)
        codes = (weight / scale[:, None]).round().clamp(-127, 127)
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scale", scale.to(_narrow(self.dtype)))

    def dequantised(self, dtype: torch.dtype, rows: slice = _ALL) -> Tensor:
        scale = self.get_buffer("scale")[rows].to(torch.promote_types(dtype, torch.float32))
        return self.get_buffer("codes")[rows].to(scale.dtype).mul_(scale[:, None]).to(dtype)

    def held(self) -> Codes:
        return Codes(self.get_buffer("codes"), self.get_buffer("scale")[:, None])

    def library_kernel(self) -> PackedLinear | None:
        return Int8Kernel(self) if _on_cpu(self) else None


class Int8Kernel(PackedLinear):
    """Codes are exact in bf16, so that a prompt's many rows can be multiplied by oneDNN, three times as fast."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__(linear.d_in, linear.d_out, linear.bias)
        self.register_buffer("codes", linear.get_buffer("codes"))
        self.register_buffer("scale", linear.get_buffer("scale").to(linear.dtype))
        self.splits = linear.dtype != torch.float16  # where sums of whole codes would pass 65504 before they are scaled

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x, self.get_buffer("codes"), self.get_buffer("scale"))
        return _with_bias(cast(Tensor, y), self.bias)

    def prompt_product(self, x: Tensor) -> Tensor:
        return _with_bias(F.linear(x, self.get_buffer("codes").to(x.dtype)) * self.get_buffer("scale"), self.bias)


class Int4Linear(QuantisedLinear):
    def __init__(self, dense: DenseLinear) -> None:
        super().__init__(dense)
        grouped = _wide(dense.weight).view(self.d_out, -1, _GROUP)
        low, high = grouped.amin(2), grouped.amax(2)
        scale = _scale((high - low) / 15, self.dtype)
        zero = (low + 8 * scale).to(_narrow(self.dtype)).to(scale.dtype)
        codes = ((grouped - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15).view(self.d_out, -1)
        self.register_buffer("codes", _two_in_a_byte(codes.to(torch.uint8)))
        scales = torch.stack([scale, zero], -1).transpose(0, 1).contiguous()
        self.register_buffer("scales", scales.to(_narrow(self.dtype)))  # [G,N,2], as torch's kernel has them

    def levels(self, rows: slice = _ALL) -> Tensor:
        """[N,K], each in a byte of its own."""
        both = self.get_buffer("codes")[rows]
        return torch.stack([both & 15, both >> 4], -1).flatten(1)

    def dequantised(self, dtype: torch.dtype, rows: slice = _ALL) -> Tensor:
        scales = self.get_buffer("scales")[:, rows].transpose(0, 1).to(torch.promote_types(dtype, torch.float32))
        codes = self.levels(rows).view(scales.shape[0], -1, _GROUP).to(scales.dtype)
        return codes.sub_(8).mul_(scales[..., 0, None]).add_(scales[..., 1, None]).flatten(1).to(dtype)

    def held(self) -> Codes:
        scales, zeros = self.get_buffer("scales").transpose(0, 1).unbind(2)
        return Codes(self.levels(), scales, zeros, tuple(float(level) for level in range(-8, 8)))

    def library_kernel(self) -> PackedLinear | None:
        return Int4Kernel(self) if _on_cpu(self) and self.d_out % 16 == 0 else None


class Int4Kernel(PackedLinear):
    def __init__(self, linear: Int4Linear) -> None:
        super().__init__(linear.d_in, linear.d_out, linear.bias)
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(linear.levels().to(torch.int32), 1)
        self.register_buffer("codes", cast(Tensor, codes))
        self.register_buffer("scales", linear.get_buffer("scales").to(linear.dtype))

    def product(self, x: Tensor) -> Tensor:
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        return _with_bias(cast(Tensor, torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, _GROUP, scales)), self.bias)


class Nf4Linear(QuantisedLinear):
    """Codes and their order are bitsandbytes'."""

    def __init__(self, dense: DenseLinear) -> None:
        super().__init__(dense)
        weight = dense.weight.detach()
        weight = weight.float() if weight.dtype == torch.float64 else weight
        codes, scale = _bitsandbytes().quantize_4bit(weight, _BLOCK, "nf4", torch.uint8)
        self.register_buffer("codes", codes.view(self.d_out, -1))
        self.register_buffer("scale", scale.view(self.d_out, -1).to(torch.bfloat16))

    def dequantised(self, dtype: torch.dtype, rows: slice = _ALL) -> Tensor:
        codes, scale = self.get_buffer("codes")[rows].reshape(-1, 1), self.get_buffer("scale")[rows].float().flatten()
        shape = [codes.numel() * 2 // self.d_in, self.d_in]
        made = torch.float32 if dtype == torch.float64 else dtype  # it knows no wider floats
        found = _bitsandbytes().dequantize_4bit(codes, scale, _BLOCK, "nf4", shape, made)
        return cast(Tensor, found).to(dtype)

    def held(self) -> Codes:
        both = self.get_buffer("codes")
        codes = torch.stack([both >> 4, both & 15], -1).flatten(1)
        return Codes(codes, self.get_buffer("scale"), table=tuple(_normal().tolist()))

    def library_kernel(self) -> PackedLinear | None:
        fits = _on_cpu(self) and self.dtype == torch.bfloat16 and self.d_out % 32 == 0 and _has_nf4_kernel()
        return Nf4Kernel(self) if fits else None


class Nf4Kernel(PackedLinear):
    def __init__(self, linear: Nf4Linear) -> None:
        from bitsandbytes.functional import QuantState, _convert_weight_packed_for_cpu

        super().__init__(linear.d_in, linear.d_out, linear.bias)
        state = QuantState(
            absmax=linear.get_buffer("scale").float().flatten(),
            shape=torch.Size((linear.d_out, linear.d_in)),
            code=_normal(),
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=torch.bfloat16,
        )
        codes, state = _convert_weight_packed_for_cpu(linear.get_buffer("codes").view(-1, 1), state)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", state.absmax)
        self.register_buffer("normal", state.code)

    def product(self, x: Tensor) -> Tensor:
        shape, scale, normal = (self.d_out, self.d_in), self.get_buffer("scale"), self.get_buffer("normal")
        y = _bitsandbytes().gemv_4bit(x.contiguous(), self.get_buffer("codes"), shape, scale, normal, _BLOCK)
        return _with_bias(cast(Tensor, y), self.bias)


_LINEARS: dict[Form, type[QuantisedLinear]] = {"int8": Int8Linear, "int4": Int4Linear, "nf4": Nf4Linear}


@torch.no_grad()
def quantised(dense: DenseLinear, form: Form) -> QuantisedLinear:
    """Raises ConfigError as ``check_form`` does."""
    return _LINEARS[form](dense)


def check_form(form: Form, widths: set[int]) -> None:
    """Whether linears with so many inputs can be held so here.

    Raises ConfigError (``quantisation_unavailable``, ``quantisation_refused``).
    """
    check_widths(form, widths)
    if form == "nf4" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "nf4 needs bitsandbytes, which is not installed.",
            code="quantisation_unavailable",
            param="quantise",
            hint="pip install 'umbel[quantised]', or use int8 or int4",
        )


def check_widths(form: Form, widths: set[int]) -> None:
    """Raises ConfigError (``quantisation_refused``) where inputs do not fall into whole groups."""
    size = {"int8": 1, "int4": _GROUP, "nf4": _BLOCK}[form]
    if odd := sorted(width for width in widths if width % size):
        raise ConfigError(
            f"{form} shares a scale among {size} inputs, and linears of this backbone have {odd[0]}.",
            code="quantisation_refused",
            param="quantise",
            hint="use int8, which takes any width",
        )


def quantised_tensors(decoder: nn.Module) -> list[Tensor]:
    """Codes and scales, in the order of the decoder's modules: buffers, since nothing of them could be trained."""
    linears = [module for module in decoder.modules() if isinstance(module, QuantisedLinear)]
    return [buffer for linear in linears for _, buffer in linear.named_buffers()]


def bytes_per_weight(form: Form) -> float:
    """Scales among the inputs included; those of int8 are one per output feature."""
    return {"int8": 1.0, "int4": 0.5 + 4 / _GROUP, "nf4": 0.5 + 2 / _BLOCK}[form]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _narrow(dtype: torch.dtype) -> torch.dtype:
    """Of scales: 16 bits whatever the activations have, so that a form is the same weight in bf16 and in fp32."""
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def _scale(wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is held, and above 0 where all weights are equal."""
    return wanted.clamp_min(1e-6).to(_narrow(dtype)).to(wanted.dtype)


def _two_in_a_byte(codes: Tensor) -> Tensor:
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def _on_cpu(linear: QuantisedLinear) -> bool:
    return linear.get_buffer("codes").device.type == "cpu" and linear.dtype != torch.float64


@cache
def _bitsandbytes() -> Any:
    """Its operators."""
    with own_kernels_only():
        import bitsandbytes  # noqa: F401 # registers them
    return torch.ops.bitsandbytes


def _normal() -> Tensor:
    """[16], what nf4's codes stand for."""
    from bitsandbytes.functional import get_4bit_type

    return cast(Tensor, get_4bit_type("nf4", device="cpu"))


def _has_nf4_kernel() -> bool:
    from bitsandbytes import functional

    return bool(functional.has_avx512bf16()) and hasattr(functional, "_convert_weight_packed_for_cpu")
