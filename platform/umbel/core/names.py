"""Names of adapters and the references that point at one version of them.

sentiment                 the version that the alias `champion` points at
sentiment:3               version 3, for ever
sentiment@canary          the version that an alias points at now
sentiment@sha256:<64hex>  the version with this digest
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from umbel.core.digests import DIGEST
from umbel.core.errors import UsageError

CHAMPION = "champion"
LATEST = "latest"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHORTEST_BEGINNING = 4
_ALIKE = 0.75
"""A beginning must be more like than a whole name: there are more of them that are."""
_NUMBER_LIKE = re.compile(r"v?\d+")


def check_name(name: str, what: str = "adapter") -> str:
    """Returns ``name`` if it may name an adapter, a backbone or an experiment (they share one name space)."""
    if not _NAME.fullmatch(name):
        near = f"did you mean {name.lower()}? " if _NAME.fullmatch(name.lower()) else ""
        raise UsageError(
            f"{name!r} cannot name an {what}." if what[0] in "aeiou" else f"{name!r} cannot name a {what}.",
            code="invalid_name",
            hint=f"{near}use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
        )
    return name


def check_alias(alias: str) -> str:
    """Returns ``alias`` if it may be one; it must not look like a version number or be ``latest``."""
    if not _NAME.fullmatch(alias) or _NUMBER_LIKE.fullmatch(alias) or alias == LATEST:
        raise UsageError(
            f"{alias!r} cannot be an alias.",
            code="invalid_alias",
            hint="use a word such as champion or canary; numbers and 'latest' are reserved",
        )
    return alias


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What ``name`` was probably meant to be: the known name that is most like it, or that begins almost so."""
    names = list(known)
    if near := get_close_matches(name, names, n=1):
        return near[0]
    if len(name) < _SHORTEST_BEGINNING:
        return None
    begins = {one[: len(name)]: one for one in reversed(names)}  # of several the first
    return next((begins[one] for one in get_close_matches(name, begins, n=1, cutoff=_ALIKE)), None)


def meant(name: str, known: Iterable[str]) -> str:
    """``did you mean mood? ``, to begin a hint with; empty where nothing is like ``name``."""
    near = nearest(name, known)
    return "" if near is None else f"did you mean {near}? "


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """What a user wrote to mean one version. At most one of the last three is set; none means ``champion``."""

    name: str
    number: int | None = None
    alias: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "AdapterRef":
        """Reads one of the four forms above; raises UsageError (``invalid_reference``) for anything else."""
        name, at, after = text.partition("@")
        if at:
            if after.startswith("sha256:"):
                if not DIGEST.fullmatch(after):
                    raise _bad_reference(text, "a digest is sha256: and 64 hex digits")
                return cls(check_name(name), digest=after)
            return cls(check_name(name), alias=after if after == LATEST else check_alias(after))
        name, colon, number = text.partition(":")
        if not colon:
            return cls(check_name(name))
        if not number.isdecimal() or int(number) < 1:
            raise _bad_reference(text, "after ':' stands a version number, counted from 1")
        return cls(check_name(name), number=int(number))

    def __str__(self) -> str:
        if self.digest:
            return f"{self.name}@{self.digest}"
        if self.number is not None:
            return f"{self.name}:{self.number}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def _bad_reference(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} does not name an adapter version: {why}.",
        code="invalid_reference",
        hint="write name, name:3, name@alias or name@sha256:...",
    )
