"""Adapters in a real registry on a real disk, and the way to make one forgotten again.

All are LoRA of rank 16 on all seven linears in bfloat16: 10 MB on disk and as much in memory.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from benchmarks.work import LORA, Work, make_adapters

from umbel.adapters.peft_io import export_files
from umbel.backbone.backbone import Backbone
from umbel.core.settings import Settings
from umbel.registry import Registry
from umbel.registry.fetch import drop
from umbel.registry.records import Version

SIZE = 40


class Stock:
    """``SIZE`` versions in a registry whose home goes away with ``close``."""

    def __init__(self, backbone: Backbone) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="umbel-targets-")
        home = Path(self._home.name)
        self.registry = Registry.open(Settings(home, f"sqlite:///{home / 'registry.db'}", str(home / "store")))
        made = make_adapters(Work("", [], [("lora", LORA)] * SIZE), backbone.shape, backbone.fingerprint)
        for adapter in made:
            for name, tensor in adapter.weights.tensors.items():
                adapter.weights.tensors[name] = tensor.to(torch.bfloat16)
        self.adapter_bytes = made[0].nbytes
        self.versions = [
            self.registry.publish(
                export_files(adapter, backbone_name=backbone.name),
                name=f"stock-{number}",
                method=adapter.method.name,
                config=adapter.config,
                contract=adapter.contract,
                backbone=backbone.fingerprint,
            )
            for number, adapter in enumerate(made)
        ]
        self.digests = [version.digest for version in self.versions]

    def forget(self, version: Version) -> bool:
        """As if nobody had ever asked for it: what was fetched is removed and its files leave the page cache.

        False where a file stays in the page cache all the same, or where that cannot be told.
        """
        store = self.registry.store
        drop(self.registry.settings.cache / "adapters" / version.digest.removeprefix("sha256:"))
        for kept in self._forms(version):
            kept.unlink()
        dropped = [_drop_pages(store.path(file.digest)) for file in version.files]
        return all(dropped)

    def await_kept(self, versions: Sequence[Version], seconds: float = 60.0) -> None:
        """Until an engine that has loaded them wrote their kept forms; raises TimeoutError."""
        end = time.monotonic() + seconds
        while not all(list(self._forms(version)) for version in versions):
            if time.monotonic() > end:
                raise TimeoutError("an adapter that was loaded has no kept form")
            time.sleep(0.05)

    def _forms(self, version: Version) -> Iterator[Path]:
        return self.registry.settings.ready.glob(f"??/{version.digest.removeprefix('sha256:')}-*")

    def close(self) -> None:
        self.registry.close()
        for folder in (Path(self._home.name) / "cache" / "adapters").glob("*"):
            drop(folder)
        self._home.cleanup()


def _drop_pages(path: Path) -> bool:
    """Linux keeps pages that are not on the disk yet: publishing syncs them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # it would have to wait for the disk
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
