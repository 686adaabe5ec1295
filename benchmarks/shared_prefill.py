"""What several head-only classifiers cost together: ``python -m benchmarks.shared_prefill``.

SmolLM2 in bf16, texts of 64 tokens, one request at a time; ways of asking take turns in one run. ``together`` is one
request that names them all, as ``"model": [...]`` does; ``singly`` is as many requests, all in the queue at once.
"""

import statistics
import time
from collections.abc import Callable

import torch
from benchmarks.systems import InMemory

from umbel.adapters.adapter import fresh_adapter
from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.contract import Contract, OutputHead
from umbel.core.settings import Settings
from umbel.engine import Engine, Handle, PoolRequest

HEADS = 10
TOKENS = 64
ROUNDS = 9


def main() -> None:
    engine, digests = prepared()
    ways: dict[str, Callable[[list[PoolRequest]], list[Handle]]] = {
        "1 classifier": lambda requests: engine.submit_together(requests[:1]),
        f"{HEADS} classifiers together": engine.submit_together,
        f"{HEADS} classifiers singly": lambda requests: [engine.submit(request) for request in requests],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for place, (way, submit) in enumerate(ways.items()):
            took = timed(engine, submit, texts(digests, len(ways) * number + place))
            if number:  # the first round loads the adapters
                seconds[way].append(took)
    told(seconds)


def prepared() -> tuple[Engine, list[str]]:
    backbone = load_backbone(
        find(Settings.load(), "smollm2-135m-instruct").folder, packed=True, kernels=Kernels.wanted(Settings.load())
    )
    source, contract = InMemory(), Contract(output_head=OutputHead.CLASSIFY, labels=("a", "b", "c"))
    for seed in range(HEADS):
        made = fresh_adapter("none", {}, contract, backbone.shape, backbone=backbone.fingerprint, seed=seed)
        source.adapters[f"sha256:{seed:064x}"] = made
    engine = Engine(
        backbone,
        source,
        kv_bytes=1 << 28,
        adapter_bytes=1 << 28,
        max_length=256,
        load=lambda stored: source.adapters[stored.ref.digest],
    )
    return engine, list(source.adapters)


def texts(digests: list[str], seed: int) -> list[PoolRequest]:
    """One text for all, which nobody asked before."""
    ids = torch.randint(10, 49152, (TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [PoolRequest(tokens=tuple(ids), adapter=digest) for digest in digests]


def timed(engine: Engine, submit: Callable[[list[PoolRequest]], list[Handle]], requests: list[PoolRequest]) -> float:
    start = time.perf_counter()
    handles = submit(requests)
    while engine.step():
        pass
    took = time.perf_counter() - start
    for handle in handles:
        handle.result()
    return took


def told(seconds: dict[str, list[float]]) -> None:
    """Ratios are medians of each round's own, so that a machine that others use too says something."""
    one = next(iter(seconds.values()))
    print("| asked | seconds, median | times one classifier, median |\n| --- | --- | --- |")
    for way, found in seconds.items():
        ratio = statistics.median(mine / base for mine, base in zip(found, one, strict=True))
        print(f"| {way} | {statistics.median(found):.3f} | {ratio:.1f} |")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
