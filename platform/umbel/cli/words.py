"""What options mean: words out of a fixed set, ``key=value`` pairs, comma lists; each mistake lists what is right."""

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

from umbel.core.errors import UsageError
from umbel.core.names import meant

Word = TypeVar("Word", bound=StrEnum)


def one_of(words: type[Word], given: str | None, option: str, *also: str) -> Word | None:
    """The member that ``given`` names; None stays None. ``also``: words that the caller understands beside them."""
    if given is None:
        return None
    try:
        return words(given)
    except ValueError:
        known = (*words, *also)
        raise UsageError(
            f"{option} {given!r} is not one.",
            param=option.lstrip("-"),
            hint=f"{meant(given, known)}use {', '.join(known)}",
        ) from None


def pairs(given: Iterable[str]) -> dict[str, str]:
    """``team=search`` as key and value; a value may hold further ``=``."""
    split = [text.partition("=") for text in given]
    for key, equals, value in split:
        if not key or not equals:
            raise UsageError(
                f"{key + equals + value!r} is no key=value.",
                code="invalid_tag",
                hint="write KEY=VALUE, such as team=search",
            )
    return {key: value for key, _, value in split}


def commas(given: Iterable[str]) -> list[str]:
    """``--scope infer,read --scope train`` as one list."""
    return [part.strip() for text in given for part in text.split(",") if part.strip()]
