"""What the machine can do, measured beside the work: bytes read and products of bfloat16 numbers per second.

bandwidth: the sum of a buffer that holds ones, as float32 so that adding costs nothing beside reading, by all threads
that the engine has. The buffer is four times the last-level cache, 512 MB at least, so it comes from memory each time.
products: the product of two bfloat16 matrices of 2,048 x 2,048, 2 * 2048**3 operations; or that of two float32 ones,
which a processor without instructions for bfloat16 multiplies faster.

One ``Machine`` serves every row of a run. It is probed between the rounds of the work, and the best of all probes
counts, for it is to be a limit: another process on one of the cores can only slow a probe down. Two threads then read
no faster than one, which is what a median of a few probes in a row may well have met.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

_LEAST, _CACHES, _SIDE = 512 << 20, 4, 2048
_SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")


class Machine:
    def __init__(self) -> None:
        self._buffer = torch.ones(max(_LEAST, _CACHES * last_cache()) // 4)
        matrix = torch.randn(_SIDE, _SIDE)
        self._matrices = [matrix, matrix.to(torch.bfloat16)]
        self.bandwidth = 0.0
        """Bytes per second."""
        self.flops = 0.0
        """Operations per second; a multiply-add is two."""
        self._once()  # warms both up

    def probe(self, times: int = 3) -> None:
        for _ in range(times):
            read, product = self._once()
            self.bandwidth = max(self.bandwidth, self._buffer.nbytes / read)
            self.flops = max(self.flops, 2 * _SIDE**3 / product)

    def _once(self) -> tuple[float, float]:
        products = [_seconds(partial(torch.mm, matrix, matrix)) for matrix in self._matrices]
        return _seconds(self._buffer.sum), min(products)

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.1f} GB/s read, {self.flops / 1e9:.0f} Gflop/s"


def last_cache(folder: Path = _SYSTEM) -> int:
    """Bytes of the largest cache that a core reads through; 0 where the system does not say."""
    sizes = [file.read_text(encoding="ascii").strip() for file in folder.glob("index*/size")]
    return max((int(size.removesuffix("K")) << 10 for size in sizes), default=0)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
