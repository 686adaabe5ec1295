"""One thread that asks the engine, steps it and reads the clock: what every row of the table is measured with.

A token's instant is the end of the step that drew it.
"""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from umbel.cli.load_shape import Clocked
from umbel.engine import Engine, Finished, GenerateRequest, Handle, Token


@dataclass(slots=True, eq=False)
class Seen(Clocked):
    """One request, in seconds of ``time.perf_counter``."""

    adapter: str | None
    asked: float
    arrivals: list[float] = field(default_factory=list)


class Driver:
    """``ask`` and ``step``; a request that fails raises its error, so that no figure is of half the work."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.live: dict[Seen, Handle] = {}

    def ask(self, request: GenerateRequest) -> Seen:
        seen = Seen(request.adapter, time.perf_counter())
        self.live[seen] = self.engine.submit(request)
        return seen

    def step(self) -> list[Seen]:
        """One step of the engine; those that it finished."""
        self.engine.step()
        now = time.perf_counter()
        return [seen for seen, handle in list(self.live.items()) if self._read(seen, handle, now)]

    def _read(self, seen: Seen, handle: Handle, now: float) -> bool:
        while handle._events:
            event = handle._events.popleft()
            if isinstance(event, Token):
                seen.arrivals.append(now)
            elif isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                del self.live[seen]
                return True
        return False

    def finish(self) -> None:
        while self.live:
            self.step()

    def all_at_once(self, requests: Iterable[GenerateRequest]) -> tuple[float, list[Seen]]:
        """Seconds until all of them are done."""
        start = time.perf_counter()
        seen = [self.ask(request) for request in requests]
        self.finish()
        return time.perf_counter() - start, seen

    def closed_loop(self, requests: Iterable[GenerateRequest], concurrent: int) -> tuple[float, list[Seen]]:
        """As many askers, each of whom asks again once answered; seconds until all requests are done."""
        start, waiting = time.perf_counter(), iter(requests)
        seen = [self.ask(request) for request in itertools.islice(waiting, concurrent)]
        while self.live:
            seen += [self.ask(request) for _, request in zip(self.step(), waiting, strict=False)]
        return time.perf_counter() - start, seen

    def decode_only(self, requests: Iterable[GenerateRequest]) -> list[Seen]:
        """Asks, and reads all prompts: from here on every step draws one token for each row."""
        seen = [self.ask(request) for request in requests]
        while not all(one.arrivals for one in seen):
            self.step()
        return seen

    def warm(self, digests: Iterable[str]) -> None:
        """Makes adapters resident, one after the other."""
        for digest in digests:
            asked = self.engine.warm(digest)
            while not asked.done():
                self.engine.step()
            asked.result()

    def drop(self) -> None:
        """Cancels what is left."""
        for handle in list(self.live.values()):
            handle.cancel()
        while self.engine.step():
            pass
        self.live.clear()


def ask(tokens: list[int], adapter: str | None = None, *, new_tokens: int) -> GenerateRequest:
    """Greedy, past the end of text: as many tokens as asked for."""
    return GenerateRequest(tokens=tuple(tokens), adapter=adapter, max_tokens=new_tokens, ignore_eos=True)


def prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    """Random ids, so that no two prompts begin alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 40_000, (count, tokens), generator=generator).tolist()
