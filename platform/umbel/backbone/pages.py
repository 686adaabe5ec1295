"""Memory that costs nothing until it is written: private pages of Linux, which read as zeros and can be given back."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor, nn

_LARGE = 2 << 20
"""Bytes of a large page of x86 and, mostly, ARM. Where they are larger, one at either end stays a small one."""


def can_reserve(device: torch.device) -> bool:
    return device.type == "cpu" and hasattr(mmap, "MADV_DONTNEED")


def reserve(nbytes: int) -> mmap.mmap:
    """Addresses for so many bytes. Raises OSError where the system promises no more than it has."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(-1, nbytes, flags=flags)


def reserve_once(nbytes: int) -> mmap.mmap:
    """The same for what is written at once and given back whole: in large pages, which take a fraction of the faults,
    and of the processor's table of pages. Raises OSError."""
    pages = reserve(nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def lay_together(module: nn.Module, kind: type[nn.Module]) -> None:
    """Moves the buffers of all parts of that kind, one after another, into one stretch of large pages.

    A step reads all of them: in pages of 4 KB it finds none in the processor's table of pages. They stay where they
    are where the system promises no addresses.
    """
    found = [
        (part, name, buffer.nbytes)
        for part in module.modules()
        if isinstance(part, kind)
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.nbytes
    ]
    try:
        pages = reserve_once(_LARGE + sum(_lines(nbytes) for _, _, nbytes in found))
    except OSError:
        return
    at = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % _LARGE
    for part, name, nbytes in found:
        part.register_buffer(name, _moved(part.get_buffer(name), pages, at))
        at += _lines(nbytes)


@torch.inference_mode(False)
@torch.no_grad()
def _moved(tensor: Tensor, pages: mmap.mmap, at: int) -> Tensor:
    return torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=at).view(tensor.shape).copy_(tensor)


def _lines(nbytes: int) -> int:
    """Up to a whole cache line."""
    return -(-nbytes // 64) * 64


def give_back(pages: mmap.mmap, start: int, size: int) -> None:
    """The whole pages within; they read as zeros afterwards."""
    first, end = whole_pages(start), (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        pages.madvise(mmap.MADV_DONTNEED, first, end - first)


def whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
