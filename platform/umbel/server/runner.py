"""uvicorn around the app, with an end that loses nothing.

SIGTERM or Ctrl-C: ``/ready`` turns 503 and new questions are refused, what runs is finished up to a deadline, what is
not finished by then is told so, and the process exits with 0. A second signal ends it at once.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from umbel.core.errors import Interrupted, UsageError
from umbel.core.listening import listen
from umbel.engine.loop import EngineThread
from umbel.server.service import Service

log = logging.getLogger("umbel.server")

MAX_CONNECTIONS = 4000
_LOOK_AGAIN = 0.02
"""Seconds between two looks at whether everything is answered."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises UsageError where the address is taken."""
    try:
        listening = listen(host, port)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}.",
            code="address_unavailable",
            hint="umbel serve --port 0 takes any free port",
        ) from error
    # Connections inherit it. Head and body of a reply are two writes: without it the second waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Runner(uvicorn.Server):
    """Serves until told to stop. ``stop`` is safe from any thread."""

    def __init__(
        self, app: ASGIApp, service: Service, thread: EngineThread, *, grace: float, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_keep_alive=30,
                timeout_graceful_shutdown=5,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )
        self.service = service
        self.thread = thread
        self.grace = grace
        self.on_ready = on_ready
        self.forced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn would raise the signal again at the end, and the exit code would tell of a failure."""
        if self.service.draining and sig == signal.SIGINT:
            self.forced = self.should_exit = self.force_exit = True
        self.stop()

    def stop(self) -> None:
        assert self._loop is not None, "not started"
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if not self.service.draining:
            log.info("stopping: what runs is finished first")
        self.service.draining = True
        self._draining = self._draining or asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.grace):
                while self.service.in_flight:
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            pass
        await asyncio.to_thread(self.thread.close)
        self.should_exit = True


def run(runner: Runner, listening: socket.socket) -> None:
    """Blocks until the end. Raises Interrupted if somebody would not wait for it."""
    runner.run(sockets=[listening])
    if runner.forced:
        raise Interrupted("stopped before everything was answered.")
    log.info("stopped")
