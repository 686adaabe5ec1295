"""What a step on a CPU does in C, where a compiler is at hand; without one torch does the same, more slowly."""

from umbel.backbone.native.codes import Codes, NativeCodes
from umbel.backbone.native.kernels import Kernels
from umbel.backbone.native.linear import COLUMNS, NativeEmbedding, NativeLinear
from umbel.backbone.native.pointwise import Pointwise

__all__ = ["COLUMNS", "Codes", "Kernels", "NativeCodes", "NativeEmbedding", "NativeLinear", "Pointwise"]
