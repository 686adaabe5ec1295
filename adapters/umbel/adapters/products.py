"""The batched product of the sites, with the same bits for a row whatever else is in it (correctness rule 2)."""

from torch import Tensor

from umbel.adapters.wide_products import baddbmm, bmm

_LEAST = 16**3
"""ATen multiplies half-precision products of up to so many multiply-adds in a loop of its own, which sums in another
order than oneDNN: a lone row of a narrow adapter would get other bits than the same row in company."""


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [S,M,K], w [S,K,N], bias [S,1,N] -> [S,M,N]. Small ones are filled up with repeated rows."""
    rows = x.shape[1]
    size = rows * x.shape[2] * w.shape[2]
    if size > _LEAST or size == 0 or x.dtype.itemsize > 2:
        return _multiply(x, w, bias)
    return _multiply(x.repeat(1, _LEAST // size + 1, 1), w, bias)[:, :rows]


def _multiply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return bmm(x, w) if bias is None else baddbmm(bias, x, w)
