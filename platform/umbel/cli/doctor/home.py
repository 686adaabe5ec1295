"""Conditions of the home and the store: folders, disk, and what dead processes left in them."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from umbel.cli.console import human_bytes, human_count, human_number
from umbel.cli.doctor.condition import Condition, Finding, failed, fine, skipped, warning
from umbel.cli.doctor.machine import AHEAD_MS
from umbel.cli.doctor.patient import Patient, Skip
from umbel.core.clock import now_ms

LEAST_DISK, LITTLE_DISK = 500_000_000, 5_000_000_000
LEAST_INODES, FEW_INODES = 1_000, 50_000
ORPHAN_MS = 24 * 3600 * 1000
"""As gc: a publish that takes longer than a day is dead."""
SLOW_SYNC = 0.25
"""Seconds; a publish syncs about ten times."""
_OTHER_DISK = "put the store on a local disk: export UMBEL_STORE_URL=/folder"


def home(patient: Patient) -> Finding:
    folder = patient.settings.home
    if patient.settings.nearby is not None:
        return warning(f"{folder} is used", f"if that is not what you mean: {patient.settings.nearby}")
    if not folder.exists():
        parent = _existing(folder)
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            return failed(f"{folder} cannot be made in {parent}", "export UMBEL_HOME=a folder of yours")
        return fine(f"{folder} will be made by the first pull")
    if not folder.is_dir():
        return failed(f"{folder} is no folder", "move it away, or export UMBEL_HOME=a folder of yours")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return failed(f"{folder} cannot be written: {error.strerror}", f"chown -R $(id -un) {folder}")
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        return warning(f"{folder} is open to other users (mode {mode:o})", f"chmod 700 {folder}")
    return fine(f"{folder}, yours alone")


def close_home(patient: Patient) -> None:
    patient.settings.home.chmod(0o700)


def disk(patient: Patient) -> Finding:
    free, place = min((shutil.disk_usage(place).free, place) for place in _places(patient))
    text = f"{human_bytes(free)} free at {place}"
    if free < LEAST_DISK:
        return failed(text, "umbel gc --yes, or move UMBEL_HOME to another disk")
    return warning(text, "umbel gc --yes") if free < LITTLE_DISK else fine(text)


def inodes(patient: Patient) -> Finding:
    counted = [(found.f_favail, place) for place in _places(patient) if (found := os.statvfs(place)).f_files]
    if not counted:
        return fine("this file system makes them as needed")
    free, place = min(counted)
    text = f"{human_count(free)} free at {place}"
    if free < LEAST_INODES:
        return failed(text, "remove small files, or move UMBEL_HOME to another disk")
    return warning(text, "umbel gc --yes") if free < FEW_INODES else fine(text)


def syncing(patient: Patient) -> Finding:
    """A publish promises bytes on the disk before it answers."""
    folder = _store(patient)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            started = time.monotonic()
            file.flush()
            os.fsync(file.fileno())
            took = time.monotonic() - started
    except OSError as error:
        return failed(f"fsync in {folder}: {error.strerror}", _OTHER_DISK)
    text = f"fsync of 4 kB takes {took * 1000:.1f} ms"
    return warning(text, _OTHER_DISK) if took > SLOW_SYNC else fine(text)


def links(patient: Patient) -> Finding:
    """A blob appears by a hard link, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=_store(patient), prefix=".doctor-") as folder:
        (Path(folder) / "one").touch()
        try:
            os.link(Path(folder) / "one", Path(folder) / "two")
        except OSError as error:
            return failed(f"no hard links in {patient.store}: {error.strerror}", _OTHER_DISK)
    return fine("hard links work in the store")


def orphans(patient: Patient) -> Finding:
    if found := list(_orphans(patient)):
        text = f"{human_number(len(found), 'folder')} of publishes that died"
        return warning(text, "umbel doctor --fix, or umbel gc --yes")
    return fine("no publish left anything behind")


def sweep_orphans(patient: Patient) -> None:
    for folder in _orphans(patient):
        shutil.rmtree(folder, ignore_errors=True)


def quarantine(patient: Patient) -> Finding:
    held = sorted((_store(patient) / "quarantine").glob("*"))
    if held:
        return warning(
            f"{human_number(len(held), 'file')} with other bytes than published, such as {held[-1].name[:12]}",
            f"umbel verify --deep says whose; when they are healed, empty {patient.store / 'quarantine'}",
        )
    return fine("nothing lost its bytes")


def future(patient: Patient) -> Finding:
    """gc and caches go by file times: what is dated ahead is never old enough."""
    if not patient.settings.home.is_dir():
        return skipped("no home yet")
    ahead = list(_from_the_future(patient))
    if ahead:
        text = f"{human_number(len(ahead), 'file')} dated ahead, such as {ahead[0]}"
        return warning(text, "umbel doctor --fix dates them now")
    return fine("no file is dated ahead")


def date_now(patient: Patient) -> None:
    for path in _from_the_future(patient):
        os.utime(path)


def _places(patient: Patient) -> list[Path]:
    """Where bytes will be written: the home, and the store if it lies elsewhere."""
    return sorted({_existing(patient.settings.home), _existing(patient.store)})


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _store(patient: Patient) -> Path:
    if not patient.store.is_dir():
        raise Skip("no store yet")
    return patient.store


def _orphans(patient: Patient) -> Iterator[Path]:
    from umbel.registry.store import held

    staging = _store(patient) / "staging"
    for folder in sorted(staging.glob("*")):
        if folder.stat().st_mtime * 1000 < now_ms() - ORPHAN_MS and not held(folder):
            yield folder


def _from_the_future(patient: Patient) -> Iterator[Path]:
    limit = (now_ms() + AHEAD_MS) / 1000
    for root in {patient.settings.home, patient.store}:
        for folder, _, names in os.walk(root):
            for path in (Path(folder, name) for name in names):
                if path.lstat().st_mtime > limit:
                    yield path


CONDITIONS = (
    Condition("home", home, close_home),
    Condition("disk", disk),
    Condition("inodes", inodes),
    Condition("fsync", syncing),
    Condition("links", links),
    Condition("staging", orphans, sweep_orphans),
    Condition("quarantine", quarantine),
    Condition("file times", future, date_now),
)
