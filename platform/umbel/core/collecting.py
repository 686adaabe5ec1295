"""When Python searches for garbage: of what libraries made at the start nearly nothing is any.

Torch, transformers and a backbone are 600,000 objects that stay. While they are made Python goes through all that is
there again and again, a second in all; and once they stand, each search through everything holds up every thread, so
every stream, for a quarter of one.
"""

import gc

_RARELY = 1_000_000
"""Objects that are made between two searches: more than a start makes."""
_usual: list[tuple[int, int, int]] = []


def start_without() -> None:
    """Hardly any search from here until ``settle``."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(_RARELY, *_usual[-1][1:])


def settle() -> None:
    """What stands now is never looked at again, and what comes as usual; nothing without ``start_without``."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
