"""Commands that train start anew in a process whose allocator leaves no holes between tensors.

torch asks glibc for aligned blocks. What is cut off at their edges lands in the thread's cache of small blocks and
stays there, so that freed neighbours never grow together: a third of what a training's layers make cannot be used
again. glibc is told to do without that cache in its environment, and reads it when a process starts, and then only.
"""

import os
import sys
from collections.abc import Mapping, Sequence

TUNABLES = "GLIBC_TUNABLES"
NO_CACHE = "glibc.malloc.tcache_count=0"
_TRAINING = (["train"], ["worker"], ["runs", "resume"])
_ANSWERING = ("serve", "run", "eval", "compare", "bench")


def start_compact(args: Sequence[str]) -> None:
    """Replaces this process by the same command line, under the same id; returns where there is nothing to gain."""
    environ = compact_environ(args, os.environ)
    if environ is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def compact_environ(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, str] | None:
    """With the setting beside what else somebody set; None for other commands, other C libraries, or if it is there."""
    trains = any(list(args[: len(words)]) == words for words in _TRAINING) and not {"--help", "-h"} & {*args}
    tunables = environ.get(TUNABLES, "")
    if not trains or "tcache_count" in tunables or not _on_glibc():
        return None
    return {**environ, TUNABLES: ":".join(filter(None, (tunables, NO_CACHE)))}


def answers(args: Sequence[str]) -> bool:
    """Whether this command steps an engine (``umbel.core.spinning``)."""
    return bool(args) and args[0] in _ANSWERING and not {"--help", "-h"} & {*args}


def _on_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False
