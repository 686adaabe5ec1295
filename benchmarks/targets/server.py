"""i. Throughput over HTTP, of the engine's own: `umbel serve` in a process of its own, streaming and plain.

32 requests of the bare backbone at once, 128 prompt and 64 new tokens: the bare step is the shortest, so what HTTP
adds to it weighs most. The engine in this process and the server take turns; no prompt is asked twice, since its
beginning would be kept. The client is a few lines of asyncio in this process, on the same cores: the system is asked to
wake it for whole answers only, and it looks at the last usage.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.systems import InMemory
from benchmarks.targets.bench import Bench
from benchmarks.targets.drive import ask
from benchmarks.targets.found import Found
from benchmarks.work import NEW_TOKENS, Work

ROWS = 32
_READY = "umbel is ready at "
_MOST_BYTES = 1 << 18
"""Of an answer: the system wakes the client when so many are there, or the end."""


def measure(bench: Bench) -> dict[str, Found]:
    driver = bench.driver(InMemory())
    ways = {"http-stream": True, "http-plain": False}
    seconds: dict[str, list[float]] = {name: [] for name in ("engine", *ways)}
    with serving(bench.folder) as url:
        for number in range(1 + len(bench.rounds(full=5, short=3))):
            took, _ = driver.all_at_once([ask(prompt, new_tokens=NEW_TOKENS) for prompt in _prompts(3 * number)])
            seconds["engine"].append(took)
            for place, (name, stream) in enumerate(ways.items(), 1):
                asked = _prompts(3 * number + place)
                seconds[name].append(asyncio.run(together(url, bench.folder.name, asked, stream=stream)))
    return {name: _found(seconds["engine"][1:], seconds[name][1:]) for name in ways}


def _prompts(seed: int) -> list[list[int]]:
    return Work("", [None] * ROWS).prompts(40_000, seed=seed)


def _found(engine: list[float], http: list[float]) -> Found:
    tokens = ROWS * NEW_TOKENS
    own, over = (tokens / statistics.median(side) for side in (engine, http))
    return Found.of([100 * a / b for a, b in zip(engine, http, strict=True)], f"{over:.0f} tokens/s of {own:.0f}")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of this backbone, in an empty home of its own."""
    with tempfile.TemporaryDirectory(prefix="umbel-targets-") as home:
        (Path(home) / "backbones").symlink_to(folder.parent)
        command = [sys.executable, "-m", "umbel.cli", "serve", "--port", "0", "--backbone", folder.name, "--quiet"]
        command += ["--guesses", "0"]  # the engine beside it does not guess
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"UMBEL_HOME": home})
        try:
            assert process.stdout
            yield next(line for line in process.stdout if line.startswith(_READY)).removeprefix(_READY).strip()
        finally:
            process.terminate()
            process.wait(60)


async def together(url: str, model: str, prompts: list[list[int]], *, stream: bool) -> float:
    """Seconds until all are answered."""
    start = time.perf_counter()
    await asyncio.gather(*(_one(url, _body(model, prompt, stream=stream)) for prompt in prompts))
    return time.perf_counter() - start


def _body(model: str, prompt: list[int], *, stream: bool) -> bytes:
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


class _Reader(asyncio.BufferedProtocol):
    """Takes what comes into memory that is there, and wakes nobody before the end: its time is not the server's."""

    def __init__(self) -> None:
        self.answer, self._room = bytearray(), bytearray(1 << 16)
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.answer += memoryview(self._room)[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.whole.set_result(None)


async def _one(url: str, body: bytes) -> None:
    """Raises RuntimeError for an answer that is not whole."""
    address = urlsplit(url)
    writer, reader = await asyncio.get_running_loop().create_connection(_Reader, address.hostname, address.port)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _MOST_BYTES)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    await reader.whole
    if f'"completion_tokens":{NEW_TOKENS}'.encode() not in reader.answer.replace(b": ", b":"):
        raise RuntimeError(f"the server answered {bytes(reader.answer[:400])!r}")
