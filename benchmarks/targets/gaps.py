"""e. The longest pause of steady rows while adapters load, over their median pause when none does.

Eight rows over four adapters decode without end, in an engine with memory for eight adapters. One asker beside them
asks 12 adapters that are not resident, one after the other, with a prompt of 16 tokens for one new token each: every
one is fetched, checked, put in place of another, worn and read for. Rounds take turns: in one nobody has ever asked
for them (``Stock.forget``), so all is read from the registry and fused; in the next each has a kept form
(`engine/ready.py`). After each round as many steps pass in quiet. The longest pause of each round over the median in
quiet; of each kind the median over rounds, and of the two the longer one counts.
"""

import statistics
import time

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found

STEADY, WORN, LOADS, SLOTS = 8, 4, 12, 8
KINDS = ("first", "kept")


def measure(bench: Bench) -> dict[str, Found]:
    stock = bench.stock
    driver = bench.driver(stock.registry, adapter_bytes=SLOTS * stock.adapter_bytes, max_length=2048)
    driver.warm(stock.digests[:WORN])
    texts = prompts(STEADY, 64, seed=1)
    driver.decode_only([ask(text, stock.digests[i % WORN], new_tokens=1900) for i, text in enumerate(texts)])
    loading: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    quiet: list[float] = []
    for number in range(1 + len(bench.rounds(full=5, short=3))):
        loads = [stock.versions[WORN + (LOADS * number + i) % (len(stock.versions) - WORN)] for i in range(LOADS)]
        for version in loads:
            stock.forget(version)
        for kind in KINDS:
            pauses = _while_loading(driver, [version.digest for version in loads])
            stock.await_kept(loads)
            still = [_pause(driver) for _ in range(max(len(pauses), 3 * LOADS))]
            if number:  # the first is to warm up
                loading[kind].append(pauses)
                quiet += still
    driver.drop()
    typical = statistics.median(quiet)
    found = {kind: [max(one) / typical for one in rounds] for kind, rounds in loading.items()}
    worse = max(KINDS, key=lambda kind: statistics.median(found[kind]))
    longest = {kind: 1e3 * statistics.median(map(max, rounds)) for kind, rounds in loading.items()}
    busy = 1e3 * statistics.median(seconds for one in loading["first"] for seconds in one)
    detail = (
        f"longest {longest['first']:.0f} ms where nobody has asked before, {longest['kept']:.0f} where forms are kept; "
        f"median {busy:.0f} ms while loading the first time, {1e3 * typical:.0f} in quiet, "
        f"the longest there {1e3 * max(quiet):.0f}"
    )
    return {"gap": Found.of(found[worse], detail)}


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
