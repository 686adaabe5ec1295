"""What a step on a CPU does in C, where a compiler is at hand; without one torch does the same, more slowly."""

from umbel.backbone.native.codes import Codes, NativeCodes
from umbel.backbone.native.kernels import Kernels
from umbel.backbone.native.linear import NativeCompact, NativeDense, NativeEmbedding, NativeWeight, native_linear
from umbel.backbone.native.pointwise import Pointwise
from umbel.backbone.native.product import NativeLinear, Product

__all__ = [
    "Codes",
    "Kernels",
    "NativeCodes",
    "NativeCompact",
    "NativeDense",
    "NativeEmbedding",
    "NativeLinear",
    "NativeWeight",
    "Pointwise",
    "Product",
    "native_linear",
]
