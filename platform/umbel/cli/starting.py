"""Which commands start in which environment (``umbel.core.anew``), and which without search for garbage."""

from collections.abc import Callable, Mapping, Sequence

from umbel.core.anew import Environ, compact, spinning, start_anew
from umbel.core.collecting import start_without

_TRAINING = (["train"], ["worker"], ["runs", "resume"])
_ANSWERING = (["serve"], ["run"], ["eval"], ["compare"], ["bench"])


def start(args: Sequence[str]) -> None:
    """Returns where this command runs well as it was started."""
    wanted = environment_of(args)
    if wanted is not None:
        start_anew(wanted)
    if wanted is spinning:  # it loads a backbone, and settles when that stands
        start_without()


def environment_of(args: Sequence[str]) -> Callable[[Mapping[str, str]], Environ | None] | None:
    """A training's memory is kept compact, the threads of what answers spin."""

    def is_one_of(commands: Sequence[Sequence[str]]) -> bool:
        return any(list(args[: len(words)]) == words for words in commands)

    if {"--help", "-h"} & {*args}:
        return None
    if is_one_of(_TRAINING):
        return compact
    return spinning if is_one_of(_ANSWERING) else None
