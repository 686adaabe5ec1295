"""What the rows of the table share: the backbone, engines on it, and one stock of adapters on a disk."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from benchmarks.systems import InMemory
from benchmarks.targets.drive import Driver
from benchmarks.targets.machine import Machine
from benchmarks.targets.stock import Stock
from benchmarks.work import Work, make_adapters

from umbel.adapters.adapter import Adapter
from umbel.backbone.backbone import Backbone
from umbel.core.kept import KeptFiles
from umbel.core.protocols import AdapterSource, StoredAdapter
from umbel.engine import Engine
from umbel.registry import Registry

KV_BYTES = 1 << 30
PLENTY = 2 << 30
"""Bytes for adapters where all are to be resident."""


def _ready(source: AdapterSource) -> KeptFiles | None:
    """As a server keeps them."""
    return KeptFiles(source.settings.ready, source.settings.ready_bytes) if isinstance(source, Registry) else None


class Bench:
    """One run of the table; ``short`` takes fewer rounds."""

    def __init__(self, backbone: Backbone, folder: Path, *, short: bool) -> None:
        self.backbone, self.folder, self.short = backbone, folder, short
        self._engines: list[Engine] = []

    def rounds(self, full: int, short: int) -> range:
        return range(short if self.short else full)

    @cached_property
    def machine(self) -> Machine:
        """What every row divides by. Made when a row first asks for it."""
        return Machine()

    @cached_property
    def stock(self) -> Stock:
        """Made when a row first asks for it."""
        return Stock(self.backbone)

    def driver(
        self,
        source: AdapterSource,
        *,
        adapter_bytes: int = PLENTY,
        max_length: int = 512,
        load: Callable[[StoredAdapter], Adapter] | None = None,
    ) -> Driver:
        sizes = {"kv_bytes": KV_BYTES, "adapter_bytes": adapter_bytes, "max_length": max_length}
        engine = Engine(self.backbone, source, load=load, ready=_ready(source), **sizes)
        if isinstance(source, Registry):  # its loader may still write into the registry's home
            self._engines.append(engine)
        return Driver(engine)

    def in_memory(self, work: Work) -> tuple[Driver, list[str | None]]:
        """An engine where the work's adapters are resident, and the digest that each request wears."""
        made = make_adapters(work, self.backbone.shape, self.backbone.fingerprint)
        digests = [f"sha256:{i:064x}" for i in range(len(made))]
        source = InMemory()
        source.adapters = dict(zip(digests, made, strict=True))
        driver = self.driver(source, load=lambda stored: source.adapters[stored.ref.digest])
        driver.warm(digests)
        source.adapters.clear()
        return driver, [None if worn is None else digests[worn] for worn in work.worn]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        if "stock" in self.__dict__:
            self.stock.close()
