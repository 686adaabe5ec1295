"""Importing bitsandbytes, or a library that imports it, without what it does on the way."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "bitsandbytes.backends.cpu.ops"


@contextmanager
def own_kernels_only() -> Iterator[None]:
    """bitsandbytes looks for a faster kernel when it is imported: it downloads a program from a hub and runs it where
    the package ``kernels`` is there, and warns where it is not. Inside, it takes its own kernels, in silence."""
    logger, before = logging.getLogger(_LOGGER), sys.modules.get("kernels")
    if "bitsandbytes" in sys.modules:
        yield
        return
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment] # an import of it fails as that of one that is missing
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before
