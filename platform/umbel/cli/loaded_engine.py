"""``umbel bench`` without a server: an engine's thread as what takes the load."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from umbel.cli.load_shape import Ask
from umbel.core.contract import OutputHead
from umbel.core.held import most_held
from umbel.engine import EngineThread, Finished, GenerateRequest, Pooled, PoolRequest, Request, Token
from umbel.server.target import Target


def asker(thread: EngineThread, targets: Mapping[str, Target], new_tokens: int) -> Ask:
    """Greedy, past the end of text; one event for the answer of an output head that does not generate."""

    async def ask(model: str, prompt: list[int]) -> AsyncIterator[int | None]:
        async for event in thread.submit(_request(targets[model], prompt, new_tokens)):
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
            if isinstance(event, Token | Pooled):
                yield None

    return ask


def _request(target: Target, prompt: list[int], new_tokens: int) -> Request:
    if target.adapter is not None and target.contract.output_head is not OutputHead.GENERATE:
        return PoolRequest(tokens=tuple(prompt), adapter=target.adapter)
    return GenerateRequest(tokens=tuple(prompt), adapter=target.adapter, max_tokens=new_tokens, ignore_eos=True)


def memory(thread: EngineThread) -> Callable[[], Awaitable[dict[str, int]]]:
    """Bytes: the process's largest so far, and what adapters, keys and values hold of it now."""

    async def read() -> dict[str, int]:
        stats = thread.stats()
        return {"process": most_held(), "adapters": stats.adapter_bytes, "keys and values": stats.kv_bytes_reserved}

    return read
