"""Memory that a process holds for nobody, and how it is given back."""

import ctypes
import os

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and the one that torch keeps in front of it."""
PRODUCTS = 128
"""Kept in each; more than a step of many adapters uses."""


def keep_few_products() -> None:
    """What oneDNN compiled for a product is kept for 1,024 sizes, 0.6 MB each; a server meets as many sizes as there
    are lengths of prompts, a training as its ragged rows make. With 128 a step of rows that decode still finds all of
    its own; a size that is met again later takes 0.5 ms to compile. Read at a process's first product; what the
    environment says stands.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(PRODUCTS))


def give_back_freed() -> None:
    """Returns pages that were freed between others that are in use; glibc keeps them otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
