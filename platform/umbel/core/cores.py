"""How many cores there are for this process."""

import os


def cores() -> int:
    """Those that it may run on; a container or ``taskset`` may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
