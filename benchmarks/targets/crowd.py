"""h. Throughput over 2,000 adapters, asked by Zipf's law, over the throughput with 8 of them.

LoRA of rank 8 on q and v in bfloat16, 0.9 MB each, 2,000 folders on a disk with digests of their own (equal but for
four bytes); a load reads and hashes one as the registry does. The engine has the server's usual 1 GB for adapters,
filled with the most popular ones as hours of such a load would leave it; the others are loaded when asked for. 32
askers, prompts of 128 tokens, 64 new ones; loads over all and over the eight most popular take turns in one engine.
"""

import random
import statistics
import tempfile
from pathlib import Path

import torch
from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.peft_io import export_files
from umbel.core.contract import Contract
from umbel.core.digests import digest_bytes, digest_file
from umbel.core.errors import Unavailable
from umbel.core.manifest import WEIGHTS_FILE, Manifest, ManifestFile
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.engine import GenerateRequest

CROWD, FEW, ASKERS = 2000, 8, 32
ADAPTER_BYTES = 10**9
OPTIONS = {"rank": 8, "targets": ("q_proj", "v_proj")}


class Folders:
    """An adapter source: one folder for each, its file hashed at every fetch."""

    def __init__(self, root: Path, adapter: Adapter, count: int) -> None:
        self.stored: dict[str, StoredAdapter] = {}
        self.read = 0
        data = bytearray(export_files(adapter, backbone_name="backbone")[WEIGHTS_FILE])
        for number in range(count):
            data[-4:] = _weights(number)
            self._write(root / f"{number}", bytes(data), adapter)

    def _write(self, folder: Path, data: bytes, adapter: Adapter) -> None:
        folder.mkdir()
        (folder / WEIGHTS_FILE).write_bytes(data)
        manifest = Manifest(
            method=adapter.method.name,
            config=adapter.config,
            contract=adapter.contract,
            backbone=adapter.backbone,
            files=(ManifestFile(path=WEIGHTS_FILE, digest=digest_bytes(data), bytes=len(data)),),
        )
        digest = manifest.digest()
        self.stored[digest] = StoredAdapter(VersionRef(folder.name, 1, digest), manifest, folder)

    def resolve(self, model: str) -> VersionRef:
        raise LookupError(model)

    def fetch(self, digest: str) -> StoredAdapter:
        stored, self.read = self.stored[digest], self.read + 1
        for file in stored.manifest.files:
            if digest_file(stored.folder / file.path) != file.digest:
                raise Unavailable(f"{file.path} of {stored.ref} is not what it was.", code="artifact_corrupt")
        return stored


def _weights(number: int) -> bytes:
    """Two small bfloat16 numbers, others for each of 65,536."""
    return bytes((number % 256, 0x3C, number // 256, 0x3C))


def measure(bench: Bench) -> dict[str, Found]:
    with tempfile.TemporaryDirectory(prefix="umbel-targets-") as scratch:
        source = Folders(Path(scratch), _adapter(bench), CROWD)
        digests = list(source.stored)
        driver = bench.driver(source, adapter_bytes=ADAPTER_BYTES)
        driver.warm(digests[:1])
        fit = ADAPTER_BYTES // driver.engine.stats().adapter_bytes
        driver.warm(reversed(digests[: min(fit, CROWD)]))
        rates: list[tuple[float, float]] = []
        source.read = 0
        for number in range(1 + len(bench.rounds(full=4, short=2))):
            pair = tuple(_rate(driver, asked(some, seed=number)) for some in (digests, digests[:FEW]))
            if number:
                rates.append(pair)
    return {"crowd": _found(rates, fit, source.read)}


def _adapter(bench: Bench) -> Adapter:
    contract = Contract(output_head="generate")
    fingerprint = bench.backbone.fingerprint
    made = fresh_adapter("lora", dict(OPTIONS), contract, bench.backbone.shape, backbone=fingerprint, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in made.weights.tensors.items():
        made.weights.tensors[name] = (tensor + 0.01 * torch.randn(tensor.shape, generator=generator)).to(torch.bfloat16)
    return made


def asked(digests: list[str], seed: int) -> list[GenerateRequest]:
    """96 requests; the k-th adapter with a probability in proportion to 1/k."""
    weights, count = [1 / rank for rank in range(1, len(digests) + 1)], 96
    worn = random.Random(seed).choices(digests, weights, k=count)
    return [ask(text, digest, new_tokens=64) for text, digest in zip(prompts(count, 128, seed), worn, strict=True)]


def _rate(driver: Driver, work: list[GenerateRequest]) -> float:
    """Generated tokens per second."""
    seconds, seen = driver.closed_loop(work, ASKERS)
    return sum(len(one.arrivals) for one in seen) / seconds


def _found(rates: list[tuple[float, float]], fit: int, read: int) -> Found:
    many, few = (statistics.median(side) for side in zip(*rates, strict=True))
    detail = f"{many:.0f} tokens/s over {few:.0f}; {min(fit, CROWD)} fit, {read} were read from disk meanwhile"
    return Found.of([a / b for a, b in rates], detail)
