"""a. What adapters add to a decode step of 32 rows, over the time that reading their bytes once would take.

Four engines on one backbone hold 32 rows each, whose prompts of 128 tokens are read: bare, over 8 LoRAs, over 32, and
over 8 methods mixed (``benchmarks/work.py``). They step in turn, so that the engines of one turn meet the same machine
and the same length; an adapter engine's step less the bare one's of the same turn is what its adapters added. Bytes are
those of all resident adapters, each of which is worn in every step: a prefix counts, though what it costs lies in the
longer keys. The median over all turns, divided by bytes over bandwidth.

No adapter is found in a cache that an earlier step left it in: between two reads lie the backbone's weights and all
keys and values, 270 MB and more, and the other engines' steps.
"""

import statistics
import time

from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask
from benchmarks.targets.found import Found, quartiles
from benchmarks.targets.machine import Machine
from benchmarks.work import Work, works

ROW_OF = {
    "32 requests, 8 LoRAs": "step-8",
    "32 requests, 32 LoRAs": "step-32",
    "32 requests, 8 methods mixed": "step-mixed",
}


def measure(bench: Bench) -> dict[str, Found]:
    turns = len(bench.rounds(full=120, short=48))
    machine = bench.machine
    known = {work.name: work for work in works(short=True)}
    bare = _decoding(bench, known["32 requests, bare backbone"], turns)
    dressed = {row: _decoding(bench, known[name], turns) for name, row in ROW_OF.items()}
    base: list[float] = []
    added: dict[str, list[float]] = {row: [] for row in dressed}
    for turn in range(turns):
        base.append(_timed(bare))
        for row, driver in dressed.items():
            added[row].append(_timed(driver) - base[-1])
        if turn % 8 == 0:
            machine.probe(1)
    told = {row: _found(added[row], driver, machine, base) for row, driver in dressed.items()}
    for driver in (bare, *dressed.values()):
        driver.drop()
    return told


def _decoding(bench: Bench, work: Work, turns: int) -> Driver:
    """With one step more than is timed: the first ones lay out what is worn."""
    driver, worn = bench.in_memory(work)
    requests = [
        ask(prompt, adapter, new_tokens=2 * turns + 16)
        for prompt, adapter in zip(work.prompts(40_000, seed=1), worn, strict=True)
    ]
    driver.decode_only(requests)
    for _ in range(3):
        driver.step()
    return driver


def _timed(driver: Driver) -> float:
    start = time.perf_counter()
    driver.step()
    return time.perf_counter() - start


def _found(added: list[float], driver: Driver, machine: Machine, base: list[float]) -> Found:
    size = driver.engine.stats().adapter_bytes
    once = size / machine.bandwidth
    low, middle, high = (seconds / once for seconds in quartiles(added))
    detail = (
        f"{1e3 * statistics.median(added):.1f} ms on a bare step of {1e3 * statistics.median(base):.1f}; "
        f"{size / 1e6:.0f} MB take {1e3 * once:.1f} ms at {machine.bandwidth / 1e9:.1f} GB/s"
    )
    return Found(middle, low, high, detail)
