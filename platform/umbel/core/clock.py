"""Time and ids, in one place so that tests can see what they get."""

import os
import time

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def now_ms() -> int:
    """UTC in whole milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def new_id(prefix: str) -> str:
    """A sortable id such as ``run-01k9...``: 48 bits of time, 80 random bits, Crockford base 32 (ULID)."""
    value = (now_ms() << 80) | int.from_bytes(os.urandom(10))
    digits = [_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}-{''.join(digits)}"
