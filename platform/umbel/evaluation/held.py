"""Adapters that are not published yet as an ``AdapterSource``: what was just trained answers through the engine.

Their files are written and read back, so what is judged is what will be published, to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from umbel.adapters.adapter import Adapter
from umbel.adapters.peft_io import export_files
from umbel.core.digests import digest_bytes
from umbel.core.errors import NotFound
from umbel.core.manifest import Manifest, ManifestFile
from umbel.core.protocols import AdapterSource, StoredAdapter, VersionRef


class HeldAdapters:
    """Known by the digests that they would be published under; others are asked for ``beyond``, if there is one."""

    def __init__(self, folder: Path, beyond: AdapterSource | None = None) -> None:
        self._folder = folder
        self._beyond = beyond
        self._stored: dict[str, StoredAdapter] = {}

    def hold(self, adapter: Adapter) -> str:
        """Writes the adapter's files and returns its digest."""
        files = export_files(adapter, backbone_name="")
        listed = [ManifestFile(path=p, digest=digest_bytes(data), bytes=len(data)) for p, data in sorted(files.items())]
        manifest = Manifest(
            method=adapter.method.name,
            config=adapter.config,
            contract=adapter.contract,
            backbone=adapter.backbone,
            files=tuple(listed),
        )
        digest = manifest.digest()
        folder = self._folder / digest.removeprefix("sha256:")
        folder.mkdir(exist_ok=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        self._stored[digest] = StoredAdapter(VersionRef("held", 1, digest), manifest, folder)
        return digest

    def resolve(self, model: str) -> VersionRef:
        return self.fetch(model).ref

    def fetch(self, digest: str) -> StoredAdapter:
        if digest not in self._stored and self._beyond is not None:
            return self._beyond.fetch(digest)
        if digest not in self._stored:
            raise NotFound(f"no adapter {digest} is held.", code="adapter_not_found")
        return self._stored[digest]


@contextmanager
def holding(beyond: AdapterSource | None = None) -> Iterator[HeldAdapters]:
    """A source that forgets everything at the end."""
    with TemporaryDirectory(prefix="umbel-held-") as folder:
        yield HeldAdapters(Path(folder), beyond)
