"""Words of a text and the token that speaks for each: its first. Read by training and serving of taggers alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from umbel.backbone.texts import cut
from umbel.backbone.tokenizer import Tokenizer
from umbel.core.contract import TEXT_SLOT, Contract

_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Word:
    """One word and where it stands in its text: characters [start, end)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class EncodedWords:
    """A text's token ids, and for each word the place of its first token; None where it was cut off."""

    ids: list[int]
    words: list[Word]
    places: list[int | None]
    cut: int


def split_words(text: str) -> list[Word]:
    """Runs of letters and digits, and each other sign by itself."""
    return [Word(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Word]]:
    """The words with one space between, and where each stands."""
    found: list[Word] = []
    start = 0
    for word in words:
        found.append(Word(word, start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), found


def encode_words(tokenizer: Tokenizer, contract: Contract, text: str, words: Sequence[Word]) -> EncodedWords:
    """The text in the contract's template, cut to its length."""
    encoded = tokenizer.hf(
        contract.fill(text), add_special_tokens=contract.add_special_tokens, return_offsets_mapping=True
    )
    ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    kept = cut(ids, contract)
    dropped = kept.cut if contract.truncation_side == "left" else 0
    before = contract.template.index(TEXT_SLOT)
    places = [_place(spans, before + word.start, before + word.end) for word in words]
    return EncodedWords(kept.ids, list(words), [_within(place, dropped, len(kept.ids)) for place in places], kept.cut)


def _place(spans: Sequence[tuple[int, int]], start: int, end: int) -> int | None:
    """The first token that holds a character of the word. Spaces before a word may or may not be its token's."""
    return next(
        (place for place, (begin, stop) in enumerate(spans) if begin < end and stop > start and stop > begin), None
    )


def _within(place: int | None, dropped: int, kept: int) -> int | None:
    return place - dropped if place is not None and 0 <= place - dropped < kept else None
