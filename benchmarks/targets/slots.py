"""c. The wait for a first token with four times more live adapters than slots, over the wait with all resident.

32 adapters in a registry on disk, 10 MB each; one engine has memory for all, the other for 8. Both get the same
requests in turn: four askers, each of whom asks again once answered; prompts of 128 tokens, 16 new ones; adapters drawn
evenly (three of four requests meet one that was evicted) or by Zipf's law, anew in each round. All were loaded once
before, so each has a kept form (`engine/ready.py`), and files are in the page cache: what counts is loading, not the
disk. p50 of all requests of a round, divided round by round.
"""

import random
import statistics

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found

from umbel.engine import GenerateRequest

LIVE, SLOTS, ASKERS = 32, 8, 4


def measure(bench: Bench) -> dict[str, Found]:
    stock = bench.stock
    roomy = bench.driver(stock.registry, adapter_bytes=LIVE * stock.adapter_bytes)
    tight = bench.driver(stock.registry, adapter_bytes=SLOTS * stock.adapter_bytes)
    roomy.warm(stock.digests[:LIVE])
    tight.warm(stock.digests[:LIVE])
    found = {}
    for row, zipf in (("slots-uniform", False), ("slots-zipf", True)):
        rounds = []
        for number in bench.rounds(full=4, short=2):
            work = asked(stock.digests[:LIVE], zipf=zipf, seed=number)
            rounds.append((_p50(tight, work), _p50(roomy, work)))
        found[row] = _found(rounds)
    return found


def asked(digests: list[str], *, zipf: bool, seed: int) -> list[GenerateRequest]:
    """48 requests."""
    draw, count = random.Random(seed), 48
    weights = [1 / rank if zipf else 1 for rank in range(1, len(digests) + 1)]
    worn = draw.choices(digests, weights, k=count)
    texts = prompts(count, 128, seed=seed)
    return [ask(text, digest, new_tokens=16) for text, digest in zip(texts, worn, strict=True)]


def _p50(driver: Driver, work: list[GenerateRequest]) -> float:
    _, seen = driver.closed_loop(work, ASKERS)
    return statistics.median(one.first for one in seen)


def _found(rounds: list[tuple[float, float]]) -> Found:
    tight, roomy = (1e3 * statistics.median(side) for side in zip(*rounds, strict=True))
    return Found.of([a / b for a, b in rounds], f"p50 {tight:.0f} ms over {roomy:.0f} ms")
