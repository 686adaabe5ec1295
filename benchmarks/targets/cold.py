"""d. From the store to the first token: an adapter of 10 MB that nobody has touched, above a resident one.

One request at a time, prompts of 128 tokens. Each adapter of the stock is asked once, forgotten before (what was
fetched is removed, its files leave the page cache: ``Stock.forget``), and once more when it is resident. p95 over the
adapters of the first, less the median of the second; rounds are the whole stock.
"""

import statistics

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found, percentile


def measure(bench: Bench) -> dict[str, Found]:
    stock = bench.stock
    cold: list[list[float]] = []
    warm: list[float] = []
    forgotten = True
    for number in bench.rounds(full=3, short=1):
        driver = bench.driver(stock.registry)
        _first(driver, None, seed=99)
        cold.append([])
        for place, version in enumerate(stock.versions):
            forgotten &= stock.forget(version)
            cold[-1].append(_first(driver, version.digest, seed=1000 * number + place))
            warm.append(_first(driver, version.digest, seed=1000 * number + 500 + place))
    base = statistics.median(warm)
    everything = [seconds for one in cold for seconds in one]
    where = "on the disk alone" if forgotten else "NOT all dropped from the page cache"
    detail = (
        f"cold p50 {1e3 * statistics.median(everything):.0f}, p95 {1e3 * percentile(everything, 95):.0f} ms; "
        f"resident p50 {1e3 * base:.0f} ms; files {where}"
    )
    return {"cold": Found.of([1e3 * (percentile(one, 95) - base) for one in cold], detail)}


def _first(driver: Driver, digest: str | None, seed: int) -> float:
    _, (seen,) = driver.all_at_once([ask(prompts(1, 128, seed)[0], digest, new_tokens=1)])
    return seen.first
