"""Bytes kept on disk that can be made again, bounded, oldest use first out. Losing some costs time and nothing else.

    <folder>/<2 characters>/<key>     the bytes, then their CRC-32

A file appears whole (written beside, then renamed) or not at all; one that a power cut left torn fails its sum and is
made again. Several processes may share a folder, and anybody may delete it at any time.
"""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path

from umbel.core.courtesy import pieces

_SUM = 4
"""Bytes of the check sum at a file's end."""
_ROOM = 0.9
"""What remains of the limit after the oldest were removed, so that not every file removes one."""

Part = bytes | bytearray | memoryview


class KeptFiles:
    """``limit`` is in bytes on disk. A full or read-only disk is no error: nothing more is kept then."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._bytes: int | None = None
        self._writable = True

    def get(self, key: str, room: Callable[[int], memoryview] | None = None) -> memoryview | None:
        """As they were put, in memory that ``room`` gives for so many bytes, or of its own; None where they are not
        there or not whole."""
        path = self.path(key)
        try:
            with path.open("rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                data = memoryview(bytearray(size)) if room is None else room(size)
                whole = _read_sound(stream, data)
            os.utime(path)  # its turn to be removed moves back
        except OSError:
            return None
        if not whole:
            with suppress(OSError):  # it is there to be made again, but perhaps not by us
                path.unlink()
            return None
        return data[:-_SUM]

    def put(self, key: str, *parts: Part) -> None:
        """Keeps the parts one after the other."""
        size = sum(memoryview(part).nbytes for part in parts) + _SUM
        if not self._writable or size > self.limit:
            return
        try:
            self._write(self.path(key), parts, size)
        except OSError:
            self._writable = False

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _write(self, path: Path, parts: Sequence[Part], size: int) -> None:
        if self._bytes is None:
            self._bytes = sum(each for _, each, _ in self._files())
        self._bytes += size
        if self._bytes > self.limit:
            self._shrink(size)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.mkdir(exist_ok=True)
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                total = 0
                for piece in (piece for part in parts for piece in pieces(memoryview(part).cast("B"))):
                    stream.write(piece)
                    total = zlib.crc32(piece, total)
                stream.write(total.to_bytes(_SUM, "little"))
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
        self._bytes = size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(last use, bytes, path) of every file; those that vanish meanwhile are left out."""
        for folder in [self.folder, *self.folder.glob("??")]:
            with suppress(OSError):
                for entry in os.scandir(folder):
                    if entry.is_file():
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, entry.path


def _read_sound(stream: RawIOBase, data: memoryview) -> bool:
    """Fills ``data``; whether it was all there, with the sum that its end tells."""
    total = 0
    for piece in pieces(data[:-_SUM]):
        if stream.readinto(piece) != len(piece):
            return False
        total = zlib.crc32(piece, total)
    end = data[-_SUM:]
    return len(data) > _SUM and stream.readinto(end) == _SUM and total == int.from_bytes(end, "little")
