"""A tiny backbone and what every adapter test does with it: put adapters on rows and read logits."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract

GENERATE = Contract(output_head="generate")


@pytest.fixture(scope="session")
def square(tmp_path_factory) -> Path:
    """Heads x head width = hidden and no o_proj bias: where every method of PEFT works."""
    return tiny_backbone(tmp_path_factory.mktemp("square") / "tiny")


@pytest.fixture(scope="session")
def backbone(square) -> Backbone:
    return load_backbone(square)


@pytest.fixture(scope="session")
def logits_of(backbone) -> Callable[..., list[Tensor]]:
    """logits_of(adapters, rows, texts, serving=False): per row, logits at the text's own tokens [T, V]."""

    def run(
        adapters: Sequence[Adapter], rows: Sequence[int | None], texts: Sequence[Tensor], *, serving: bool = False
    ) -> list[Tensor]:
        layers = list(backbone.decoder.layers) if serving else None
        worn = [None if row is None else adapters[row] for row in rows]
        virtual = [0 if a is None else a.weights.num_virtual for a in worn]
        past = torch.tensor([0 if a is None else a.weights.num_past for a in worn])
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.cat([torch.zeros(v, dtype=torch.long), t]) for v, t in zip(virtual, texts, strict=True)],
            batch_first=True,
        )
        batch, length = padded.shape
        fused = fuse_all(adapters, layers)
        step = whole_step(
            wear(fused, rows, least=2 if serving else 1),
            rows=batch,
            tokens=length,
            offsets=past,
            want=torch.arange(batch * length),
            want_sites=wear(fused, [row for row in rows for _ in range(length)]),
        )
        with torch.no_grad():
            logits = backbone.decoder(padded, step).logits.view(batch, length, -1)
        return [logits[i, v : v + len(t)] for i, (v, t) in enumerate(zip(virtual, texts, strict=True))]

    return run


@pytest.fixture(scope="session")
def made(backbone) -> Callable[..., Adapter]:
    """made(method, options, contract, seed): a fresh adapter whose tensors all got noise."""

    def make(
        method: str, options: dict | None = None, contract: Contract = GENERATE, seed: int = 1, noise: float = 0.1
    ) -> Adapter:
        adapter = fresh_adapter(
            method, options or {}, contract, backbone.shape, backbone=backbone.fingerprint, seed=seed
        )
        adapter.weights.initialise(list(backbone.decoder.layers), lambda *_: None)
        generator = torch.Generator().manual_seed(seed + 1000)
        for tensor in adapter.tensors.values():
            tensor += torch.randn(tensor.shape, generator=generator) * noise
        adapter.weights.bake()
        return adapter

    return make
