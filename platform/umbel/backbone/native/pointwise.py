"""What stands between the linears of a layer and behind the last, by ``pointwise.c``: in bf16, without gradients."""

import ctypes

import torch
from torch import Tensor

from umbel.backbone.native.kernels import COUNT, POINTER, THREADS, Kernels


class Pointwise:
    """Each in one pass, computed in fp32 and rounded once."""

    def __init__(self, kernels: Kernels) -> None:
        library = kernels.library
        self._norm = library.umbel_rms_norm
        self._norm.argtypes = [POINTER, POINTER, POINTER, COUNT, COUNT, ctypes.c_float, THREADS]
        self._silu_mul = library.umbel_silu_mul
        self._silu_mul.argtypes = [POINTER, POINTER, COUNT, COUNT, THREADS]
        self._rotate = library.umbel_rotate
        self._rotate.argtypes = [POINTER, COUNT, POINTER, POINTER, COUNT, COUNT, COUNT, THREADS]
        self._likeliest = library.umbel_likeliest
        self._likeliest.argtypes = [POINTER, COUNT, COUNT, POINTER, POINTER, THREADS]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., H] -> [..., H]."""
        x = x.contiguous()
        y, width = torch.empty_like(x), x.shape[-1]
        self._norm(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, eps, torch.get_num_threads()
        )
        return y

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[..., 2I] -> [..., I]."""
        x, width = gate_up.contiguous(), gate_up.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        self._silu_mul(x.data_ptr(), y.data_ptr(), y.numel() // width, width, torch.get_num_threads())
        return y

    def likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[M,V] -> the largest values [M], in fp32, and where they stand first [M]; NaN is the largest."""
        assert logits.dtype == torch.bfloat16
        x = logits.contiguous()
        best, place = torch.empty(len(x), dtype=torch.float32), torch.empty(len(x), dtype=torch.int64)
        threads = min(len(x), torch.get_num_threads())
        self._likeliest(x.data_ptr(), len(x), x.shape[1], best.data_ptr(), place.data_ptr(), threads)
        return best, place

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
        """Rotates the first ``heads`` heads of qkv [B,T,heads + more,D] in place; cos and sin [B,1,T,D]."""
        cos, sin = cos.contiguous(), sin.contiguous()
        assert qkv.is_contiguous()
        width = qkv.shape[-1]
        assert cos.numel() == qkv.shape[0] * qkv.shape[1] * width
        self._rotate(
            qkv.data_ptr(), qkv.stride(1), cos.data_ptr(), sin.data_ptr(),
            qkv.shape[0] * qkv.shape[1], heads, width, torch.get_num_threads(),
        )  # fmt: skip
