"""Tensors of single rows on disk (``KeptFiles``), the newest of them in memory, too."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from umbel.core.kept import KeptFiles

IN_MEMORY = 256_000_000
"""Bytes that are held in memory, too: a step of a trained head takes less time than opening its files."""


class RowStore:
    """``limit`` is in bytes on disk. A full or read-only disk is no error: rows are then not kept."""

    def __init__(self, folder: Path, limit: int, *, in_memory: int = IN_MEMORY) -> None:
        self.in_memory = in_memory
        self._files = KeptFiles(folder, limit)
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._held_bytes = 0

    def get(self, digest: str, dtype: torch.dtype, width: int) -> Tensor | None:
        """[n, width] as it was put, or None. Do not write into it."""
        if (held := self._held.get(digest)) is not None:
            self._held.move_to_end(digest)
            return held
        data = self._files.get(digest)
        if data is None or len(data) % (width * dtype.itemsize):
            return None
        found = torch.frombuffer(data, dtype=dtype).view(-1, width)
        self._hold(digest, found)
        return found

    def put(self, digest: str, rows: Tensor) -> None:
        """Keeps ``rows`` [n, width], on CPU and contiguous."""
        self._hold(digest, rows)
        self._files.put(digest, rows.view(torch.uint8).numpy().data)

    def _hold(self, digest: str, rows: Tensor) -> None:
        if digest in self._held:
            return
        self._held[digest] = rows
        self._held_bytes += rows.nbytes
        while self._held_bytes > self.in_memory:
            _, oldest = self._held.popitem(last=False)
            self._held_bytes -= oldest.nbytes
