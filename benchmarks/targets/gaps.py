"""e. The longest pause of steady rows while adapters load, over their median pause when none does.

Eight rows over four adapters decode without end, in an engine with memory for eight adapters. One asker beside them
asks 12 adapters that are not resident, one after the other, with a prompt of 16 tokens for one new token each: every
one is fetched from the registry, checked, put in place of another, worn and read for. In most rounds they are loaded
for the first time, so no kept form helps. After each round as many steps pass in quiet. The longest pause of each round
over the median in quiet; the median over rounds counts.
"""

import statistics
import time

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found

STEADY, WORN, LOADS, SLOTS = 8, 4, 12, 8


def measure(bench: Bench) -> dict[str, Found]:
    stock = bench.stock
    driver = bench.driver(stock.registry, adapter_bytes=SLOTS * stock.adapter_bytes, max_length=2048)
    driver.warm(stock.digests[:WORN])
    texts = prompts(STEADY, 64, seed=1)
    driver.decode_only([ask(text, stock.digests[i % WORN], new_tokens=1900) for i, text in enumerate(texts)])
    loading: list[list[float]] = []
    quiet: list[float] = []
    for number in range(1 + len(bench.rounds(full=6, short=3))):
        loads = [stock.digests[WORN + (LOADS * number + i) % (len(stock.digests) - WORN)] for i in range(LOADS)]
        pauses = _while_loading(driver, loads)
        still = [_pause(driver) for _ in pauses]
        if number:  # the first is to warm up
            loading.append(pauses)
            quiet += still
    driver.drop()
    typical = statistics.median(quiet)
    busy = statistics.median(seconds for one in loading for seconds in one)
    detail = (
        f"longest {1e3 * statistics.median(map(max, loading)):.0f} ms; median {1e3 * busy:.0f} ms while loading, "
        f"{1e3 * typical:.0f} in quiet, the longest there {1e3 * max(quiet):.0f}"
    )
    return {"gap": Found.of([max(one) / typical for one in loading], detail)}


def _while_loading(driver: Driver, digests: list[str]) -> list[float]:
    """Seconds of every step until all were loaded, worn and answered."""
    pauses = []
    for place, digest in enumerate(digests):
        assert digest not in driver.engine.bank
        driver.ask(ask(prompts(1, 16, seed=place)[0], digest, new_tokens=1))
        while len(driver.live) > STEADY:
            pauses.append(_pause(driver))
    return pauses


def _pause(driver: Driver) -> float:
    """Every step gives each steady row one token: its length is the pause of all of them."""
    start = time.perf_counter()
    driver.step()
    return time.perf_counter() - start
