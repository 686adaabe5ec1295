"""Threads that look for work a little longer before they sleep, for processes that answer on a CPU.

A step is some hundred small parallel regions, microseconds apart. libgomp lets a thread spin between them for a
microsecond only, once a process has more OpenMP threads than the machine has cores: and every Python thread that
calls torch (the engine's, the loader's, the one that loaded the backbone) gets threads of its own. Each region then
waits for the kernel to wake somebody, 30 microseconds, which is a quarter of the time of a step with eight LoRAs.
libgomp reads this from its environment when a process starts, and then only.
"""

import os
import sys
from collections.abc import Mapping

SPINS = "20000"
"""About 0.2 ms where nothing else wants the core; an idle server sleeps."""
VARIABLES = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": SPINS}


def spinning_environ(environ: Mapping[str, str]) -> dict[str, str] | None:
    """None where somebody has said how threads wait, or where there is no libgomp."""
    if sys.platform != "linux" or any(name in environ for name in VARIABLES):
        return None
    return {**environ, **VARIABLES}


def start_spinning() -> None:
    """Replaces this process by the same command line, under the same id, if that changes anything."""
    environ = spinning_environ(os.environ)
    if environ is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
