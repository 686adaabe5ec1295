"""What an adapter adds to serving: bytes in the bank of the engine, and time of a step beside the bare backbone."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from umbel.adapters import catalog
from umbel.adapters.adapter import Adapter
from umbel.adapters.head import HeadConfig
from umbel.adapters.method import cast
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Layer
from umbel.core.contract import Contract, OutputHead
from umbel.core.manifest import Manifest
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.engine import Engine, GenerateRequest

_ROUNDS = 9
"""The second smallest and second largest of so many differences hold their median between them with 96 %."""
_PROMPT = (2, 32)
"""Rows and tokens of a prompt's step."""
_DECODE = 8
"""Rows of a step of generation, one token each."""
_TOKENS = 4
"""Such steps in a round."""
_KV_BYTES = _ADAPTER_BYTES = 1 << 30
"""At most; what is not touched takes no memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCost:
    """Milliseconds are of this machine; the rounds with and without the adapter alternate."""

    bytes: int
    prompt_ms: float
    """A step of 2 prompts of 32 tokens, all rows with the adapter on."""
    prompt_bare_ms: float
    decode_ms: float
    """A step of 8 rows, one token each."""
    decode_bare_ms: float
    prompt_added_ms: tuple[float, float]
    """96 % interval of the median difference of a round, with the adapter less without."""
    decode_added_ms: tuple[float, float]

    @property
    def sentences(self) -> list[str]:
        """What is added to each step; a difference that the rounds do not show is not told as a figure."""
        return [
            _added(self.prompt_ms - self.prompt_bare_ms, self.prompt_added_ms, self.prompt_bare_ms, _PROMPT_WORDS),
            _added(self.decode_ms - self.decode_bare_ms, self.decode_added_ms, self.decode_bare_ms, _DECODE_WORDS),
        ]


_PROMPT_WORDS = "a step of 2 prompts of 32 tokens"
_DECODE_WORDS = "a step of 8 rows"


def _added(middle: float, ends: tuple[float, float], bare: float, step: str) -> str:
    low, high = ends
    if low <= 0:
        most = f" (at most {high:.1f} ms)" if high > 0 else ""
        return f"no measurable time{most} to {step} ({bare:.1f} ms)"
    return f"{min(max(middle, low), high):.1f} ms ({low:.1f} to {high:.1f}) to {step} ({bare:.1f} ms)"


def bank_bytes(adapter: Adapter, backbone: Backbone) -> int:
    """What the adapter holds in memory while it is served, output head included."""
    fused = cast(adapter.weights, adapter.weights.fuse(_layers(backbone)), backbone.dtype)
    return sum(tensor.numel() * tensor.element_size() for tensor in fused.values()) + adapter.head.nbytes


def serving_cost(adapter: Adapter, backbone: Backbone) -> ServingCost:
    """By an engine of its own, on the backbone as it is loaded: packed and with kernels it is what a server has."""
    worn = _generating(adapter, backbone)
    engine = Engine(
        backbone, _One(worn), kv_bytes=_KV_BYTES, adapter_bytes=_ADAPTER_BYTES, prefix_bytes=0, load=lambda _: worn
    )
    times: dict[str, list[float]] = {}
    try:
        for _ in range(_ROUNDS + 1):
            for name, measure in (("prompt", _prompt_ms), ("decode", _decode_ms)):
                times.setdefault(name, []).append(measure(engine, worn.digest))
                times.setdefault(f"{name}_bare", []).append(measure(engine, None))
    finally:
        engine.close()
    measured = {name: values[1:] for name, values in times.items()}  # the first round loads, and warms up
    return ServingCost(
        bytes=bank_bytes(adapter, backbone),
        prompt_ms=median(measured["prompt"]),
        prompt_bare_ms=median(measured["prompt_bare"]),
        decode_ms=median(measured["decode"]),
        decode_bare_ms=median(measured["decode_bare"]),
        prompt_added_ms=within(measured["prompt"], measured["prompt_bare"]),
        decode_added_ms=within(measured["decode"], measured["decode_bare"]),
    )


def within(on: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """The ends of the median difference's interval, by order: a round that somebody disturbed moves neither."""
    differences = sorted(a - b for a, b in zip(on, off, strict=True))
    return differences[1], differences[-2]


def _layers(backbone: Backbone) -> list[Layer]:
    return [layer for layer in backbone.decoder.layers if isinstance(layer, Layer)]


def _generating(adapter: Adapter, backbone: Backbone) -> Adapter:
    """The same method's weights with no output head of their own, so that rows of any task can decode."""
    kind, contract = catalog.head(OutputHead.GENERATE), Contract(output_head=OutputHead.GENERATE)
    config = kind.configure(contract, HeadConfig(), backbone.shape.hidden)
    head = kind.fresh(config, backbone.shape.hidden, torch.Generator())
    return replace(adapter, head=head, contract=contract, digest=f"sha256:{0:064x}")


class _One:
    """A source of one adapter, which is in memory."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def resolve(self, model: str) -> VersionRef:
        raise LookupError(model)

    def fetch(self, digest: str) -> StoredAdapter:
        own = self._adapter
        manifest = Manifest(
            method=own.method.name, config=own.config, contract=own.contract, backbone=own.backbone, files=()
        )
        return StoredAdapter(VersionRef("measured", 1, own.digest), manifest, Path())


def _prompt_ms(engine: Engine, digest: str | None) -> float:
    """Until both have their first token."""
    rows, tokens = _PROMPT
    return 1000 * sum(_steps(engine, digest, rows, tokens, 1))


def _decode_ms(engine: Engine, digest: str | None) -> float:
    """Of the steps behind those that read the prompts."""
    return 1000 * median(_steps(engine, digest, _DECODE, 1, 1 + _TOKENS)[-_TOKENS:])


def _steps(engine: Engine, digest: str | None, rows: int, tokens: int, answer: int) -> list[float]:
    """Seconds of each step that works, until all rows have ended."""
    request = GenerateRequest(tokens=(1,) * tokens, adapter=digest, max_tokens=answer, ignore_eos=True)
    handles = engine.submit_together([request] * rows, drive=False)
    times = []
    while not all(handle.done for handle in handles):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    for handle in handles:
        handle.result()  # raises where one failed
    return times
