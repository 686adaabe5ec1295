"""What 12 bits for each bf16 number cost and save: the same backbone with both forms of its weights, in turn.

    python -m benchmarks.compact [--rounds 5] [--steps 60]

    step    one token of each of so many requests behind 128 tokens of prompt; median, and median of the ratios in turn
    whole   128 tokens of prompt and 64 new ones per request, all at once: generated tokens per second, end to end

Fails where any token differs between the two.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.run import BACKBONE
from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import Driver, ask
from benchmarks.work import NEW_TOKENS, Work, works

from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone, make_servable
from umbel.backbone.native import Kernels
from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings

FORMS = {"16 bits": False, "12 bits": True}
WORKS = ("1 request, bare backbone", "8 requests, bare backbone", "32 requests, bare backbone", "32 requests, 8 LoRAs")


@dataclass(slots=True)
class Times:
    """Of one form, in seconds."""

    steps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    start_anew(spinning)
    settings = Settings.load()
    folder, kernels = find(settings, BACKBONE).folder, Kernels.load(settings.cache / "kernels")
    benches = {}
    for name, compact in FORMS.items():
        backbone = load_backbone(folder)
        start = time.perf_counter()
        make_servable(backbone, kernels, compact=compact)
        print(f"{name}: {backbone.bytes / 1e6:.1f} MB, packed in {time.perf_counter() - start:.1f} s")
        benches[name] = Bench(backbone, folder, short=True)
    print("\n| work | step, 16 bits | step, 12 bits | ratio | whole, 16 bits | whole, 12 bits | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for work in (work for work in works(short=False) if work.name in WORKS):
        found = {name: Times() for name in FORMS}
        _step(benches, work, found, asked.steps)
        _whole(benches, work, found, asked.rounds)
        print(_line(work, *found.values()), flush=True)


def _step(benches: dict[str, Bench], work: Work, found: dict[str, Times], steps: int) -> None:
    drivers = {}
    for name, bench in benches.items():
        driver, worn = bench.in_memory(work)
        prompts = zip(work.prompts(40_000, seed=1), worn, strict=True)
        driver.decode_only([ask(prompt, adapter, new_tokens=steps + 8) for prompt, adapter in prompts])
        for _ in range(3):
            driver.step()
        drivers[name] = driver
    for _ in range(steps):
        for name, driver in drivers.items():
            found[name].steps.append(_seconds(driver.step))
    for driver in drivers.values():
        driver.drop()


def _whole(benches: dict[str, Bench], work: Work, found: dict[str, Times], rounds: int) -> None:
    ready = {name: bench.in_memory(work) for name, bench in benches.items()}
    for number in range(1 + rounds):
        answers = []
        for name, (driver, worn) in ready.items():
            took, tokens = _answers(driver, work, worn, number)
            answers.append(tokens)
            if number:
                found[name].whole.append(took)
        if answers[0] != answers[1]:
            raise SystemExit(f"{work.name}: the tokens of round {number} differ")


def _answers(driver: Driver, work: Work, worn: list[str | None], seed: int) -> tuple[float, list[list[int]]]:
    """Seconds until all are done, and the new tokens of each."""
    pairs = zip(work.prompts(40_000, seed=100 + seed), worn, strict=True)
    requests = [ask(prompt, adapter, new_tokens=NEW_TOKENS) for prompt, adapter in pairs]
    handles = [driver.engine.submit(request) for request in requests]

    def finish() -> None:
        while not all(handle.done for handle in handles):
            driver.engine.step()

    took = _seconds(finish)
    return took, [handle.result().ids for handle in handles]


def _line(work: Work, plain: Times, compact: Times) -> str:
    tokens = work.concurrent * NEW_TOKENS
    steps = [1e3 * median(times.steps) for times in (plain, compact)]
    whole = [tokens / median(times.whole) for times in (plain, compact)]
    cells = [
        work.name, *(f"{ms:.2f} ms" for ms in steps), f"{_ratio(compact.steps, plain.steps):.2f}",
        *(f"{speed:.0f} tokens/s" for speed in whole), f"{_ratio(plain.whole, compact.whole):.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
