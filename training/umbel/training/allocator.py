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

from umbel.backbone.footprint import keep_few_products

LARGE = 8 << 20
"""Bytes of a block that is mapped by itself."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names for them, in malloc.h."""
_SPARE = 256 << 20
"""Free bytes at the heap's end that stay: giving them back after every step would cost time."""


def bound_memory() -> None:
    """For this process, from now on. What somebody set in the environment is left alone."""
    keep_few_products()
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, LARGE)
            mallopt(_TRIM_THRESHOLD, _SPARE)
