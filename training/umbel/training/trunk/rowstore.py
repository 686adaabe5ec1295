"""Tensors of single rows on disk, bounded in bytes, oldest use first out. Losing one costs time and nothing else.

    <folder>/<2 hex>/<digest>     the tensor's bytes, then their CRC-32

A file appears whole (written beside, then renamed) or not at all; one that a power cut left torn fails its sum and is
made again. Several processes may share a folder, and anybody may delete it at any time.
"""

import os
import tempfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_SUM = 4
"""Bytes of the check sum at a file's end."""
_ROOM = 0.9
"""What remains of the limit after the oldest were removed, so that not every row removes one."""
IN_MEMORY = 256_000_000
"""Bytes that are held in memory, too: a step of a trained head takes less time than opening its files."""


class RowStore:
    """``limit`` is in bytes on disk. A full or read-only disk is no error: rows are then not kept."""

    def __init__(self, folder: Path, limit: int, *, in_memory: int = IN_MEMORY) -> None:
        self.folder, self.limit, self.in_memory = folder, limit, in_memory
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._held_bytes = 0
        self._disk_bytes: int | None = None
        self._writable = True

    def get(self, digest: str, dtype: torch.dtype, width: int) -> Tensor | None:
        """[n, width] as it was put, or None. Do not write into it."""
        if (held := self._held.get(digest)) is not None:
            self._held.move_to_end(digest)
            return held
        data = self._read(self._path(digest))
        if data is None or (len(data) - _SUM) % (width * dtype.itemsize):
            return None
        found = torch.frombuffer(data, dtype=dtype, count=(len(data) - _SUM) // dtype.itemsize).view(-1, width)
        self._hold(digest, found)
        return found

    def put(self, digest: str, rows: Tensor) -> None:
        """Keeps ``rows`` [n, width], on CPU and contiguous."""
        self._hold(digest, rows)
        data = rows.view(torch.uint8).numpy().tobytes()
        if not self._writable or len(data) + _SUM > self.limit:
            return
        try:
            self._write(self._path(digest), data + zlib.crc32(data).to_bytes(_SUM, "little"))
        except OSError:
            self._writable = False

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def _read(self, path: Path) -> bytearray | None:
        try:
            data = bytearray(path.read_bytes())
            os.utime(path)  # its turn to be removed moves back
        except OSError:
            return None
        if len(data) <= _SUM or zlib.crc32(memoryview(data)[:-_SUM]) != int.from_bytes(data[-_SUM:], "little"):
            with suppress(OSError):  # it is there to be made again, but perhaps not by us
                path.unlink()
            return None
        return data

    def _write(self, path: Path, data: bytes) -> None:
        if self._disk_bytes is None:
            self._disk_bytes = sum(size for _, size, _ in self._files())
        self._disk_bytes += len(data)
        if self._disk_bytes > self.limit:
            self._shrink(len(data))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # hidden states tell what the rows say
        path.parent.mkdir(exist_ok=True)
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise

    def _shrink(self, coming: int) -> None:
        """Removes the files that were used longest ago; counts anew, as other processes write here, too."""
        files = sorted(self._files())
        size = sum(each for _, each, _ in files) + coming
        for _, each, path in files:
            if size <= self.limit * _ROOM:
                break
            Path(path).unlink(missing_ok=True)
            size -= each
        self._disk_bytes = size

    def _files(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, path) of every file; those that vanish meanwhile are left out."""
        found = []
        for folder in [self.folder, *self.folder.glob("??")]:
            try:
                for entry in os.scandir(folder):
                    if entry.is_file():
                        status = entry.stat()
                        found.append((status.st_mtime, status.st_size, entry.path))
            except OSError:
                continue
        return found

    def _hold(self, digest: str, rows: Tensor) -> None:
        if digest in self._held:
            return
        self._held[digest] = rows
        self._held_bytes += rows.nbytes
        while self._held_bytes > self.in_memory:
            _, oldest = self._held.popitem(last=False)
            self._held_bytes -= oldest.nbytes
