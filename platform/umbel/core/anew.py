"""What libraries read from a process's environment when it starts, and then only; a process that lacks it starts anew.

compact    torch asks glibc for aligned blocks. What is cut off at their edges lands in the thread's cache of small
           blocks and stays there, so that freed neighbours never grow together: a third of what a training's layers
           make cannot be used again. glibc is told to do without that cache.
spinning   A step is some hundred small parallel regions, microseconds apart. libgomp lets a thread spin between them
           for a microsecond only, once a process has more OpenMP threads than the machine has cores: and every Python
           thread that calls torch (the engine's, the loader's, the one that loaded the backbone) gets threads of its
           own. Each region then waits for the kernel to wake somebody, 30 microseconds, which is a quarter of the time
           of a step with eight LoRAs. Threads are told to look for work a little longer before they sleep.
           (``Kernels.alone`` and ``let_go`` keep such threads few where nobody starts a process anew.)
"""

import os
import sys
from collections.abc import Callable, Mapping

Environ = dict[str, str]
TUNABLES = "GLIBC_TUNABLES"
NO_CACHE = "glibc.malloc.tcache_count=0"
SPINS = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "20000"}
"""About 0.2 ms where nothing else wants the core; an idle server sleeps."""


def compact(environ: Mapping[str, str]) -> Environ | None:
    """With the setting beside what else somebody set; None if it is there, or for another C library."""
    tunables = environ.get(TUNABLES, "")
    if "tcache_count" in tunables or not _on_glibc():
        return None
    return {**environ, TUNABLES: ":".join(filter(None, (tunables, NO_CACHE)))}


def spinning(environ: Mapping[str, str]) -> Environ | None:
    """None where somebody has said how threads wait, or where there is no libgomp."""
    if sys.platform != "linux" or any(name in environ for name in SPINS):
        return None
    return {**environ, **SPINS}


def start_anew(wanted: Callable[[Mapping[str, str]], Environ | None]) -> None:
    """Replaces this process by the same command line, under the same id, if that changes anything."""
    environ = wanted(os.environ)
    if environ is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def _on_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False
