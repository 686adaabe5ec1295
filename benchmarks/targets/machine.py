"""What the machine can do, measured beside the work: bytes read and bfloat16 products per second.

bandwidth: the sum of a buffer of 512 MB of bfloat16, looked at as float32 so that adding costs nothing beside reading,
by as many threads as the engine has. It is 16 times the last cache of the machine that this was written on.
products: the product of two bfloat16 matrices of 2,048 x 2,048, 2 * 2048**3 operations.

Both are probed between the rounds of the work; the medians count.
"""

import statistics
import time
from collections.abc import Callable

import torch

_NUMBERS, _SIDE = 256 << 20, 2048


class Machine:
    def __init__(self) -> None:
        self._buffer = torch.ones(_NUMBERS, dtype=torch.bfloat16)
        self._matrix = torch.randn(_SIDE, _SIDE).to(torch.bfloat16)
        self._reads: list[float] = []
        self._products: list[float] = []
        self._once()  # warms both up

    def probe(self, times: int = 3) -> None:
        for _ in range(times):
            read, product = self._once()
            self._reads.append(_NUMBERS * 2 / read)
            self._products.append(2 * _SIDE**3 / product)

    def _once(self) -> tuple[float, float]:
        return _seconds(self._buffer.view(torch.float32).sum), _seconds(lambda: self._matrix @ self._matrix)

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return statistics.median(self._reads)

    @property
    def flops(self) -> float:
        """Operations per second; a multiply-add is two."""
        return statistics.median(self._products)

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.1f} GB/s read, {self.flops / 1e9:.0f} Gflop/s in bfloat16"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
