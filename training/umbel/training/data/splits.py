"""Train, validation and test by a hash of the text: stable for ever, whatever is added or in which order."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "validation", "test")

_NAMES_AND_LINKS = re.compile(r"https?:\S+|www\.\S+|@\w+|\brt\b")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Keyed:
    """One row of JSONL and the text that decides its split: rows of equal ``key`` never part."""

    key: str
    row: Mapping[str, Any]


def text_key(text: str) -> str:
    """A text's key: case, punctuation, links, @names and "RT" do not count, so a retweet stays with its tweet.

    A text of nothing else is its own key.
    """
    return _NO_WORD.sub(" ", _NAMES_AND_LINKS.sub(" ", text.casefold())).strip() or text


def unit(key: str) -> float:
    """A key's place in [0, 1): the first 8 bytes of its sha256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split(rows: Iterable[Keyed], *, held_out: float) -> dict[str, list[Mapping[str, Any]]]:
    """``held_out`` is the share of validation, and again of test.

    Rows come in the order of their hash, so the first N rows of any file are a random sample of it.
    """
    parts: dict[str, list[Keyed]] = {name: [] for name in SPLITS}
    for row in rows:
        parts[_part(unit(row.key), held_out)].append(row)
    return {name: [row.row for row in sorted(part, key=_shuffled)] for name, part in parts.items()}


def _part(place: float, held_out: float) -> str:
    if place < held_out:
        return "test"
    return "validation" if place < 2 * held_out else "train"


def _shuffled(row: Keyed) -> tuple[float, str]:
    return unit(row.key), str(row.row)  # rows of equal key: by their text, so that no order of arrival shows
