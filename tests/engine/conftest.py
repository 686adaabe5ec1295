"""A tiny backbone in both dtypes, adapters with random weights, and a source that keeps them in memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.backbone.backbone import Backbone
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.errors import NotFound
from umbel.core.manifest import Manifest
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.engine import Answer, Engine, GenerateRequest

torch.set_num_threads(1)

MANY = 1 << 30


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    return tiny_backbone(folder, hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=3)


@pytest.fixture(scope="session")
def fp32(tiny_folder: Path) -> Backbone:
    return load_backbone(tiny_folder, dtype="float32")


@pytest.fixture(scope="session")
def bf16(tiny_folder: Path) -> Backbone:
    return load_backbone(tiny_folder, dtype="bfloat16", packed=True)


@dataclass
class MemorySource:
    """An ``AdapterSource`` of adapters by digest; ``gate`` holds loads back while it is clear."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def add(self, adapter: Adapter) -> str:
        self.adapters[adapter.digest] = adapter
        return adapter.digest

    def resolve(self, model: str) -> VersionRef:
        raise NotFound(f"no adapter {model!r}")

    def fetch(self, digest: str) -> StoredAdapter:
        self.gate.wait(10)
        self.fetched.append(digest)
        if digest not in self.adapters:
            raise NotFound(f"there is no version {digest}.", code="version_not_found")
        adapter = self.adapters[digest]
        manifest = Manifest(
            method=adapter.method.name, config={}, contract=adapter.contract, backbone=adapter.backbone, files=()
        )
        return StoredAdapter(VersionRef("memory", 1, digest), manifest, Path())

    def load(self, stored: StoredAdapter) -> Adapter:
        return self.adapters[stored.ref.digest]


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


def make_adapter(
    backbone: Backbone,
    method: str,
    seed: int,
    *,
    contract: Contract | None = None,
    scale: float = 0.3,
    fingerprint: str | None = None,
    **options: Any,
) -> Adapter:
    """An adapter whose tensors are all random, so that it changes every answer."""
    contract = contract or Contract(output_head=OutputHead.GENERATE)
    fresh = fresh_adapter(
        method, options, contract, backbone.shape, backbone=fingerprint or backbone.fingerprint, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    for tensor in fresh.tensors.values():
        tensor += scale * torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.25
    return replace(fresh, digest=digest_bytes(f"{method} {seed} {options}".encode()), name=f"{method}-{seed}:1")


CLASSIFY = Contract(output_head=OutputHead.CLASSIFY, labels=("bad", "fair", "good"))

EngineMaker = Callable[..., Engine]


@pytest.fixture
def engine_of(source: MemorySource) -> EngineMaker:
    engines: list[Engine] = []

    def make(backbone: Backbone, **options: Any) -> Engine:
        sizes = {"kv_bytes": MANY, "adapter_bytes": MANY, "max_length": 256} | options
        engines.append(Engine(backbone, source, load=source.load, **sizes))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def prompt(text: str) -> tuple[int, ...]:
    """Some token ids; the tiny tokenizer's tokens are bytes."""
    return tuple(text.encode())


def drain(engine: Engine) -> None:
    while engine.step():
        pass


def run(engine: Engine, requests: Sequence[Any]) -> list[Answer]:
    """All at once."""
    handles = [engine.submit(request) for request in requests]
    drain(engine)
    return [handle.result() for handle in handles]


def greedy(text: str, adapter: str | None = None, **more: Any) -> GenerateRequest:
    settings: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "logprobs": 3} | more
    return GenerateRequest(tokens=prompt(text), adapter=adapter, **settings)
