"""The thread that owns an engine, and the face of it that any thread or asyncio task may use."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

from umbel.core.errors import UmbelError
from umbel.engine.engine import Engine, Stats
from umbel.engine.handle import Handle
from umbel.engine.requests import Answer, Request

log = logging.getLogger(__name__)

_FAULTS_IN_A_ROW = 3
"""A fault of the step fails the requests in it; so many without a good step between mean the engine is broken."""


class EngineThread:
    """Steps an engine as long as there is work, and sleeps otherwise.

    Use it as a context manager, or call ``start`` and ``close``.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._thread = threading.Thread(target=self._run, name="umbel-engine", daemon=True)
        self._draining = self._stopping = False
        self._faults = 0

    def start(self) -> "EngineThread":
        if (kernels := self.engine.backbone.kernels) is not None:
            kernels.let_go()  # of whoever loaded the backbone
        self._thread.start()
        return self

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and steps succeed."""
        return self._thread.is_alive() and self._faults < _FAULTS_IN_A_ROW

    def submit(self, request: Request) -> Handle:
        """As ``Engine.submit``; read the handle by ``for``, ``async for`` or ``await handle.answer()``."""
        return self.engine.submit(request, drive=False)

    def submit_together(self, requests: Sequence[Request]) -> list[Handle]:
        """As ``Engine.submit_together``."""
        return self.engine.submit_together(requests, drive=False)

    async def answer(self, request: Request) -> Answer:
        """Submits and waits; raises the request's error. Cancelling the task cancels the request."""
        return await self.submit(request).answer()

    async def warm(self, digest: str) -> bool:
        """As ``Engine.warm``, awaited; cancelling the task ends the wish."""
        return await asyncio.wrap_future(self.engine.warm(digest))

    async def unload(self, digest: str) -> bool:
        return await asyncio.wrap_future(self.engine.unload(digest))

    def stats(self) -> Stats:
        return self.engine.stats()

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, lets running and waiting ones end for up to ``drain_s`` seconds, fails the rest."""
        self.engine.refuse()
        self._draining = True
        self.engine.wakeup.set()
        deadline = time.monotonic() + drain_s
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stopping = True
        self.engine.wakeup.set()
        self._thread.join()

    def __enter__(self) -> "EngineThread":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stopping:
            if self._step():
                continue
            if self._draining:
                break
            self.engine.wakeup.wait()
        self.engine.close()

    def _step(self) -> bool:
        """A fault that is not one row's own (memory, a bug) fails what is in the engine, which goes on."""
        try:
            more = self.engine.step()
        except Exception as fault:
            self._faults += 1
            log.exception("the engine's step failed")
            self.engine.fail_all(
                UmbelError(
                    f"the engine's step failed ({type(fault).__name__}).",
                    code="engine_fault",
                    hint="send the request again; the server's log has the details",
                )
            )
            return True
        self._faults = 0
        return more
