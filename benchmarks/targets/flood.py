"""f. The wait of 16 steady askers, each with its own adapter, while one more adapter is asked 100 times as much.

A steady asker has one request on its way, and waits a tenth to half a second before the next. The flood is 100 requests
of a 17th adapter on their way at any time. All adapters are resident; prompts of 128 tokens, 16 to 48 new ones; 32
rows at once. Periods with and without the flood take turns; the first 16 steady requests of each, while the flood still
fills the rows, do not count. p95 to the first token of the others, divided period by period.
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, Seen, ask, prompts
from benchmarks.targets.found import Found, percentile

from umbel.engine import GenerateRequest

STEADY, FLOOD = 16, 100


def measure(bench: Bench) -> dict[str, Found]:
    stock, count = bench.stock, 64 if bench.short else 96
    driver = bench.driver(stock.registry)
    driver.warm(stock.digests[: STEADY + 1])
    rounds = []
    for number in bench.rounds(full=4, short=2):
        alone = _period(driver, stock.digests, count, flood=0, seed=number)
        flooded = _period(driver, stock.digests, count, flood=FLOOD, seed=number)
        rounds.append((percentile(flooded, 95), percentile(alone, 95)))
    flooded_ms, alone_ms = (1e3 * statistics.median(side) for side in zip(*rounds, strict=True))
    return {"flood": Found.of([a / b for a, b in rounds], f"p95 {flooded_ms:.0f} ms over {alone_ms:.0f} ms")}


def _period(driver: Driver, digests: list[str], count: int, *, flood: int, seed: int) -> list[float]:
    """Seconds to the first token of ``count`` steady requests."""
    draw, texts = random.Random(seed), _requests(seed)
    due = {digest: time.perf_counter() + draw.uniform(0, 1) for digest in digests[:STEADY]}
    kept: list[Seen] = []
    for _ in range(flood):
        driver.ask(next(texts)(digests[STEADY]))
    while len(kept) < STEADY + count or not all(seen.arrivals for seen in kept[: STEADY + count]):
        for digest in [digest for digest, instant in due.items() if instant <= time.perf_counter()]:
            del due[digest]
            kept.append(driver.ask(next(texts)(digest)))
        for done in driver.step():
            if done.adapter == digests[STEADY]:
                driver.ask(next(texts)(done.adapter))
            else:
                due[str(done.adapter)] = time.perf_counter() + draw.uniform(0.1, 0.5)
    driver.drop()
    return [seen.first for seen in kept[STEADY : STEADY + count]]


def _requests(seed: int) -> Iterator[Callable[[str], GenerateRequest]]:
    """One after the other; each waits for its adapter."""
    draw = random.Random(seed + 1)
    for number in itertools.count():
        for text in prompts(64, 128, seed=1000 * seed + number):
            yield partial(ask, text, new_tokens=draw.randint(16, 48))
