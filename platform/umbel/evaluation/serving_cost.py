"""What an adapter adds to serving: bytes in the bank of the engine, and time of a step beside the bare backbone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import cast
from umbel.adapters.sites import BARE, Sites
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Layer, whole_step

_ROUNDS = 9
"""The second smallest and second largest of so many differences hold their median between them with 96 %."""
_PROMPT = (2, 32)
"""Rows and tokens of a prompt's step."""
_DECODE = (8, 1)
"""Rows of a step of generation, one token each."""


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
    worn = fuse_all([adapter], _layers(backbone), dtype=backbone.dtype)
    times: dict[str, list[float]] = {}
    for _ in range(_ROUNDS + 1):
        for name, (rows, tokens) in (("prompt", _PROMPT), ("decode", _DECODE)):
            sites = wear(worn, [0] * rows, device=backbone.device, least=2)
            extra = adapter.weights.num_virtual if name == "prompt" else 0
            past = torch.full((rows,), adapter.weights.num_past, device=backbone.device)
            on, off = _step(backbone, sites, rows, tokens + extra, past), _step(backbone, BARE, rows, tokens, None)
            times.setdefault(name, []).append(_ms(on))
            times.setdefault(f"{name}_bare", []).append(_ms(off))
    measured = {name: values[1:] for name, values in times.items()}  # the first round warms up
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


def _step(
    backbone: Backbone, sites: Sites, rows: int, tokens: int, past: torch.Tensor | None
) -> Callable[[], torch.Tensor]:
    ids = torch.ones(rows, tokens, dtype=torch.long, device=backbone.device)

    @torch.no_grad()
    def run() -> torch.Tensor:
        hidden: torch.Tensor = backbone.decoder(ids, whole_step(sites, rows=rows, tokens=tokens, offsets=past)).hidden
        return hidden

    return run


def _ms(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    float(step()[0, 0, 0])  # waits for a GPU, too
    return 1000 * (time.perf_counter() - start)
