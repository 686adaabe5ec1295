"""A tiny backbone, adapters with random weights in a source in memory, and an engine on them: the lab."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from umbel.engine import Answer, Engine, GenerateRequest, PoolRequest
from umbel.engine.resident import Resident, make_resident
from umbel.engine.slots import Bank

GENERATE = Contract(output_head=OutputHead.GENERATE)
LABELS = ("bad", "fair", "good")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tiny_backbone(
        tmp_path_factory.mktemp("backbones") / "tiny",
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        num_hidden_layers=3,
    )


@pytest.fixture(scope="session")
def fp32(folder) -> Backbone:
    return load_backbone(folder, dtype="float32")


@pytest.fixture(scope="session")
def by_torch(folder) -> Backbone:
    return load_backbone(folder, dtype="bfloat16", packed=True)


@pytest.fixture(scope="session")
def by_kernels(folder, kernels) -> Backbone:
    return load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)


@pytest.fixture(scope="session")
def odd(tmp_path_factory, kernels) -> Backbone:
    """Widths that fill no vector, and biases."""
    sizes = {"hidden_size": 52, "intermediate_size": 72, "num_attention_heads": 4, "head_dim": 14,
             "num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True}  # fmt: skip
    folder = tiny_backbone(tmp_path_factory.mktemp("odd") / "odd", **sizes)
    return load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["by_torch", "by_kernels"])
def bf16(request) -> Backbone:
    """As it is served: packed, by torch alone and by the compiled kernels."""
    return request.getfixturevalue(request.param)


@dataclass
class MemorySource:
    """An ``AdapterSource`` of adapters by digest; loads wait while ``gate`` is clear."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    broken: dict[str, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()

    def resolve(self, model: str) -> VersionRef:
        raise NotFound(f"no adapter {model!r}")

    def fetch(self, digest: str) -> StoredAdapter:
        assert self.gate.wait(30)
        self.fetched.append(digest)
        if digest in self.broken:
            raise self.broken[digest]
        if digest not in self.adapters:
            raise NotFound(f"there is no version {digest}.", code="version_not_found")
        adapter = self.adapters[digest]
        manifest = Manifest(
            method=adapter.method.name, config={}, contract=adapter.contract, backbone="sha256:" + "0" * 64, files=()
        )
        return StoredAdapter(VersionRef("memory", 1, digest), manifest, Path())

    def load(self, stored: StoredAdapter) -> Adapter:
        return self.adapters[stored.ref.digest]


@dataclass
class Lab:
    """Makes adapters, engines and requests for one backbone."""

    backbone: Backbone
    source: MemorySource = field(default_factory=MemorySource)
    engines: list[Engine] = field(default_factory=list)
    now: float = 0.0
    """The engines' clock, moved by hand."""

    def adapter(
        self, method: str, seed: int, *, contract: Contract = GENERATE, scale: float = 0.3, **options: Any
    ) -> str:
        """Digest of an adapter whose tensors are all random, so that it changes every answer."""
        fingerprint = options.pop("fingerprint", self.backbone.fingerprint)
        fresh = fresh_adapter(method, options, contract, self.backbone.shape, backbone=fingerprint, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for tensor in fresh.tensors.values():
            tensor += scale * torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.25
        digest = digest_bytes(repr((method, seed, contract, scale, options, fingerprint)).encode())
        self.source.adapters[digest] = replace(fresh, digest=digest, name=f"{method}-{seed}:1")
        return digest

    def residents(self, method: str, kinds: Sequence[Mapping[str, Any]]) -> list[Resident]:
        """One of each kind and a second of the first, in a bank."""
        bank = Bank(1 << 26)
        digests = [self.adapter(method, seed, **options) for seed, options in enumerate([*kinds, kinds[0]])]
        found = [make_resident(digest, self.source.adapters[digest], self.backbone) for digest in digests]
        for resident in found:
            bank.insert(resident)
        return found

    def zoo(self) -> list[str | None]:
        """One of everything that generates, two of one shape, and the bare backbone."""
        return [
            self.adapter("lora", 1, rank=4),
            self.adapter("lora", 2, rank=4),
            self.adapter("lora", 3, rank=8, rslora=True, targets=("q_proj", "v_proj", "lm_head")),
            self.adapter("lora", 4, rank=3, dora=True),
            self.adapter("llama_adapter", 5),
            self.adapter("prefix", 6, length=5),
            self.adapter("prompt", 7, length=4),
            self.adapter("ia3", 8),
            self.adapter("bottleneck", 9),
            None,
        ]

    def classifier(self, seed: int, method: str = "lora", **options: Any) -> str:
        contract = Contract(output_head=OutputHead.CLASSIFY, labels=LABELS)
        return self.adapter(method, seed, contract=contract, **options)

    def engine(self, **options: Any) -> Engine:
        sizes = {"kv_bytes": 1 << 26, "adapter_bytes": 1 << 26, "max_length": 256}
        settings = {**sizes, "clock": lambda: self.now, "load": self.source.load, **options}
        self.engines.append(Engine(self.backbone, self.source, **settings))
        return self.engines[-1]

    def close(self) -> None:
        self.source.gate.set()
        for engine in self.engines:
            engine.close()

    @staticmethod
    def tokens(text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def ask(self, text: str, adapter: str | None = None, **settings: Any) -> GenerateRequest:
        """Greedy, a fixed number of tokens, with log-probabilities; ``settings`` change that."""
        plain: dict[str, Any] = {"max_tokens": 10, "ignore_eos": True, "logprobs": 2} | settings
        return GenerateRequest(tokens=self.tokens(text), adapter=adapter, **plain)

    def pool(self, text: str, adapter: str, **settings: Any) -> PoolRequest:
        return PoolRequest(tokens=self.tokens(text), adapter=adapter, **settings)

    @staticmethod
    def drain(engine: Engine) -> None:
        while engine.step():
            pass

    def run(self, engine: Engine, requests: Sequence[Any]) -> list[Answer]:
        """All submitted at once; raises the first error of a request."""
        handles = [engine.submit(request) for request in requests]
        self.drain(engine)
        return [handle.result() for handle in handles]

    @staticmethod
    def poison(engine: Engine) -> None:
        """Fills what no row owns: free slots of the cache, places beyond each row, the stacks' next free slots."""
        slabs, running = engine.scheduler.running.cache.slabs, engine.scheduler.running.rows
        used = [row.used for row in running] + [0] * (slabs.shape[2] - len(running))
        for slot, first in enumerate(used):
            slabs[:, 0, slot, :, first:] = float("nan")
            slabs[:, 1, slot, :, first:] = 1e30
        for stack in engine.bank.stacks.values():
            for tensor in stack.tensors.values():
                used = len(stack.members)
                tensor[used : used + 3] = float("nan") if tensor.is_floating_point() else 1 << 40

    @property
    def tolerance(self) -> float:
        """How far logits may lie apart in other company (correctness rule 2)."""
        return 0.0 if self.backbone.dtype == torch.bfloat16 else 2e-4

    def same(self, a: Answer, b: Answer) -> None:
        """Equal tokens, and log-probabilities as equal as correctness rule 2 promises for the dtype."""
        assert a.ids == b.ids
        tolerance = self.tolerance
        for one, other in zip(a.tokens, b.tokens, strict=True):
            assert abs(one.logprob - other.logprob) <= tolerance
            assert [x.token for x in one.top] == [x.token for x in other.top] or tolerance


@pytest.fixture
def lab(fp32) -> Iterator[Lab]:
    made = Lab(fp32)
    yield made
    made.close()


@pytest.fixture(params=["fp32", "by_torch", "by_kernels"])
def any_lab(request) -> Iterator[Lab]:
    """The lab in both dtypes, bf16 by torch and by the kernels."""
    made = Lab(request.getfixturevalue(request.param))
    yield made
    made.close()
