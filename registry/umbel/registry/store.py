"""The artifact store: immutable files named by the sha256 of their bytes.

    store/blobs/sha256/ab/abcd...   read-only, for ever the same
    store/staging/<id>/             private to one publish; swept by gc when its publish died
    store/quarantine/<hex>-<id>     what did not have the bytes of its name

Paths are computed from digests only; nothing that a client sends becomes a path. A blob appears by ``link``, whole
or not at all, and is on the disk (fsync of the file, then of its folder) before ``put`` returns.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from umbel.core.clock import new_id
from umbel.core.digests import DIGEST, digest_file
from umbel.core.errors import ConfigError, Unavailable
from umbel.core.folders import make_folder
from umbel.registry.failpoints import Point, reach

READ_ONLY = 0o444
_DISK = {errno.ENOSPC: "is full", errno.EDQUOT: "is over its quota", errno.EROFS: "is read-only", errno.EIO: "fails"}


class BlobStore:
    """A local folder. Thread-safe and safe between processes."""

    def __init__(self, url: str) -> None:
        if "://" in url:
            raise ConfigError(
                f"UMBEL_STORE_URL names {url!r}; only folders are supported.",
                code="unknown_store",
                hint="set it to a folder that every server can see, or unset it",
            )
        self.root = Path(url)

    def create(self) -> None:
        make_folder(self.root.parent, "UMBEL_STORE_URL")
        make_folder(self.root, "UMBEL_STORE_URL", mode=0o700)  # adapters may carry what they were trained on
        for folder in (self.root / "blobs" / "sha256", self.staging, self.root / "quarantine"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    def path(self, digest: str) -> Path:
        assert DIGEST.fullmatch(digest), digest
        hexdigits = digest.removeprefix("sha256:")
        return self.root / "blobs" / "sha256" / hexdigits[:2] / hexdigits

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A private folder that goes away at the end, unless the process dies first."""
        with ExitStack() as held:
            folder = self._claimed(held)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _claimed(self, held: ExitStack) -> Path:
        """A new folder, locked. Until it is, gc takes it for a dead one: another is made then."""
        while True:
            folder = self.staging / new_id("stage")
            with disk(self.root):
                folder.mkdir(mode=0o700)
            with suppress(FileNotFoundError):
                held.enter_context(_holding(folder))
                if folder.is_dir():
                    return folder

    def drop_dead(self, folder: Path) -> None:
        """Removes a staging folder, unless its process lives; holds it meanwhile, so that nobody begins to use it."""
        with suppress(FileNotFoundError, BlockingIOError), _holding(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, file: Path, digest: str) -> None:
        """Makes a synced file of this filesystem the blob ``digest``; heals a blob that has other bytes."""
        target = self.path(digest)
        with disk(self.root):
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                sync(target.parent.parent)
            if target.exists() and not self.sound(digest):
                self.quarantine(digest)
            _link(file, target)
            reach(Point.PUBLISH_BLOB_LINKED)
            sync(target.parent)
            reach(Point.PUBLISH_BLOB_SYNCED)

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob is there with this many bytes; does not read it."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def sound(self, digest: str) -> bool:
        """Whether the blob is there and has the bytes of its name; reads it all."""
        try:
            return digest_file(self.path(digest)) == digest
        except FileNotFoundError:
            return False

    def quarantine(self, digest: str) -> None:
        """Moves the blob out of the way, for somebody to look at; nothing happens if it is not there."""
        name = f"{digest.removeprefix('sha256:')}-{new_id('bad')}"
        try:
            self.path(digest).rename(self.root / "quarantine" / name)
        except FileNotFoundError:
            return
        sync(self.path(digest).parent)

    def remove(self, digest: str) -> bool:
        """Whether there was one."""
        try:
            self.path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def digests(self) -> Iterator[str]:
        for folder in sorted((self.root / "blobs" / "sha256").iterdir()):
            for file in sorted(folder.iterdir()):
                if DIGEST.fullmatch(f"sha256:{file.name}"):
                    yield f"sha256:{file.name}"


def write_synced(target: Path, source: bytes | Path) -> None:
    """A new read-only file with these bytes, on the disk before this returns (its folder is not)."""
    with target.open("xb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as origin:
                shutil.copyfileobj(origin, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(READ_ONLY)


def sync(folder: Path) -> None:
    """Puts the names in a folder on the disk; fsync of a file does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk(root: Path) -> Iterator[None]:
    """A disk that is full, read-only or broken becomes an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise Unavailable(
            f"the disk of {root} {_DISK[error.errno]}: nothing was published.",
            code="store_unavailable",
            hint="free some space (`umbel gc`) or set UMBEL_STORE_URL to another disk",
        ) from error


def held(folder: Path) -> bool:
    """Whether the process that works in a staging folder lives; the kernel drops its lock when it dies."""
    try:
        with _holding(folder, wait=False):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@contextmanager
def _holding(folder: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileExistsError:
        try:
            os.utime(target)  # its grace before gc starts anew
        except FileNotFoundError:  # gc was quicker
            os.link(file, target)
