"""Keeps a training's memory near what its tensors take, however ragged its rows are.

oneDNN keeps a kernel for every shape that it has met: half a megabyte each, a thousand of them in each of two caches.
Batches of ragged rows meet new shapes all the time, so the caches would outgrow the model that is trained.

glibc moves large blocks into its heap once some were freed, and there blocks of other sizes fit badly into the holes
that they leave. Beyond ``LARGE`` each is mapped by itself and goes back at once; smaller ones would cost more page
faults than they are worth.
"""

import ctypes
import os
import sys
from collections.abc import MutableMapping

KEPT = 128
"""Kernels in each cache: more than a step of many adapters uses, at most. Making one again takes half a millisecond."""
LARGE = 8 << 20
"""Bytes of a block that is mapped by itself."""
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and torch's in front of it. Both are read when the first product in bf16 is computed, and not again."""
NO_CACHE = "glibc.malloc.tcache_count=0"
"""In ``GLIBC_TUNABLES`` when a process starts, keeps the edges of freed blocks from lying between them as holes."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names for them, in malloc.h."""
_SPARE = 256 << 20
"""Free bytes at the heap's end that stay: giving them back after every step would cost time."""


def bound_memory(environ: MutableMapping[str, str] = os.environ) -> None:
    """For this process, from now on. What somebody set in the environment is left alone."""
    for name in _CACHES:
        environ.setdefault(name, str(KEPT))
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, LARGE)
            mallopt(_TRIM_THRESHOLD, _SPARE)
