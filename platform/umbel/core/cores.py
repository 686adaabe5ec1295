"""Which cores there are for this process."""

import os


def cores() -> int:
    """Those that it may run on; a container or ``taskset`` may leave it fewer than the machine has."""
    return len(own_cores()) or os.cpu_count() or 1


def own_cores() -> list[int]:
    """Numbers of those that the calling thread may run on; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def stay_on(numbers: list[int]) -> None:
    """Where the calling thread runs from now on."""
    if numbers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)
