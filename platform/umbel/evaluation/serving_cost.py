"""What an adapter adds to serving: bytes in the bank of the engine, and time of a step beside the bare backbone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import cast
from umbel.adapters.sites import BARE, Sites
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Layer, whole_step

_ROUNDS = 5
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
    found = {f"{name}_ms": median(values[1:]) for name, values in times.items()}  # the first round warms up
    return ServingCost(bytes=bank_bytes(adapter, backbone), **found)


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
