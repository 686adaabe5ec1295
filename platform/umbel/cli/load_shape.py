"""A load on a server or an engine: who asks what when, and what was seen of it. ``umbel bench`` prints it.

A closed loop: ``concurrent`` askers, each of whom asks again as soon as it was answered, until ``requests`` are done.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from umbel.core.errors import UmbelError

Ask = Callable[[str, list[int]], AsyncIterator[int | None]]
"""(model, prompt) -> None at each token, or once at the answer of an output head that does not generate; at the end the
number of tokens, where some came together: a stream of text has nothing to send for half a character."""


class Popularity(StrEnum):
    """How requests fall on the adapters, in the order in which they are named."""

    UNIFORM = "uniform"
    ZIPF = "zipf"
    ONE_HOT = "one-hot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is asked; equal shapes ask the same tokens of the same adapters in the same order."""

    requests: int
    concurrent: int
    prompt_tokens: int
    new_tokens: int
    popularity: Popularity
    seed: int = 0

    def wearers(self, names: Sequence[str]) -> list[str]:
        """A name for each request. uniform: each in turn; zipf: the k-th with probability in proportion to 1/k."""
        if self.popularity is Popularity.UNIFORM:
            return list(itertools.islice(itertools.cycle(names), self.requests))
        if self.popularity is Popularity.ONE_HOT:
            return [names[0]] * self.requests
        weights = [1 / rank for rank in range(1, len(names) + 1)]
        return random.Random(self.seed).choices(names, weights, k=self.requests)

    def prompts(self, ids: Sequence[int]) -> list[list[int]]:
        """Drawn from ``ids``, so that no two prompts begin alike for long."""
        draw = random.Random(self.seed + 1)
        return [draw.choices(ids, k=self.prompt_tokens) for _ in range(self.requests)]


class Clocked:
    """What was asked at one instant and answered at others, in seconds of one clock."""

    __slots__ = ()
    asked: float
    arrivals: list[float]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]


@dataclass(slots=True)
class Seen(Clocked):
    """One request: seconds from the start of the load."""

    model: str
    asked: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    error: UmbelError | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """All requests of one load, in the order in which they were asked."""

    seconds: float
    seen: list[Seen]

    @property
    def answered(self) -> list[Seen]:
        return [one for one in self.seen if one.error is None and one.arrivals]

    @property
    def first(self) -> list[float]:
        return [one.first for one in self.answered]

    @property
    def gaps(self) -> list[float]:
        return [gap for one in self.answered for gap in one.gaps]


async def put_load(shape: Shape, names: Sequence[str], ids: Sequence[int], ask: Ask) -> Load:
    """A request that fails is kept with its error, and the next one is asked."""
    waiting = iter(list(zip(shape.wearers(names), shape.prompts(ids), strict=True)))
    seen: list[Seen] = []
    start = time.perf_counter()

    async def asker() -> None:
        for model, prompt in waiting:
            one = Seen(model, time.perf_counter() - start)
            seen.append(one)
            try:
                async for total in ask(model, prompt):
                    if total is None:
                        one.arrivals.append(time.perf_counter() - start)
                    one.tokens = one.tokens + 1 if total is None else total
            except UmbelError as error:
                one.error = error

    await asyncio.gather(*(asker() for _ in range(min(shape.concurrent, shape.requests))))
    return Load(time.perf_counter() - start, seen)


async def highest(read: Callable[[], Awaitable[dict[str, int]]], until: asyncio.Event, every: float) -> dict[str, int]:
    """The largest that each number was, read every so many seconds."""
    found: dict[str, int] = {}
    while True:
        for key, value in (await read()).items():
            found[key] = max(value, found.get(key, 0))
        try:
            await asyncio.wait_for(until.wait(), every)
        except TimeoutError:
            continue
        return found


def quantile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was seen. ``values`` are not empty."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]
