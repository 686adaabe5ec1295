"""Folders that appear whole or not at all.

Whatever kills the process while a folder is being built (an exception, ``kill -9``, a power cut), its name
either does not exist or holds everything.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umbel.core.errors import ConfigError


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yields an empty sibling folder to fill; on success it becomes ``target``, on an exception it goes away.

    Hold ``only_one(target)`` around it: two builders of one name would otherwise sweep each other's leftovers.
    Raises FileExistsError if ``target`` is there.
    """
    if target.exists():
        raise FileExistsError(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes 0700
        _sync_tree(folder)
        folder.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def make_folder(folder: Path, variable: str, *, mode: int = 0o777) -> None:
    """Makes it where it is not there; raises ConfigError (``folder_unusable``). ``variable``: what names another."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        check_folder(folder, variable)
        raise ConfigError(
            f"{folder} cannot be made: {error.strerror}.",
            code="folder_unusable",
            hint=f"export {variable}=a folder of yours",
        ) from error


def check_folder(folder: Path, variable: str) -> None:
    """Raises ConfigError (``folder_unusable``) where something else has its place."""
    if os.path.exists(folder) and not os.path.isdir(folder):  # pathlib's raise where all is shut
        raise ConfigError(
            f"{folder} is no folder.",
            code="folder_unusable",
            hint=f"move it away, or export {variable}=a folder of yours",
        )


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Waits until no other process holds the same target. The kernel frees the lock when its holder dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def folders_in(parent: Path) -> list[Path]:
    """The finished folders of a parent, by name; what is being built, and locks, start with a dot."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _prefix(target: Path) -> str:
    return f".{target.name}.building-"


def _sweep(target: Path) -> None:
    for leftover in target.parent.glob(f"{_prefix(target)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
