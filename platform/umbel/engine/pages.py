"""Memory that costs nothing until it is written: private pages of Linux, which read as zeros and can be given back."""

import mmap
from contextlib import suppress

import torch


def can_reserve(device: torch.device) -> bool:
    return device.type == "cpu" and hasattr(mmap, "MADV_DONTNEED")


def reserve(nbytes: int) -> mmap.mmap:
    """Addresses for so many bytes. Raises OSError where the system promises no more than it has."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(-1, nbytes, flags=flags)


def reserve_once(nbytes: int) -> mmap.mmap:
    """The same for what is written at once and soon given back whole: in large pages, which take a fraction of the
    faults. Raises OSError."""
    pages = reserve(nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def give_back(pages: mmap.mmap, start: int, size: int) -> None:
    """The whole pages within; they read as zeros afterwards."""
    first, end = whole_pages(start), (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        pages.madvise(mmap.MADV_DONTNEED, first, end - first)


def whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
