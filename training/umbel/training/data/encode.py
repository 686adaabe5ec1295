"""Rows become token ids and what is to be learnt at them. Training text is serving text, token for token.

prompt rows    prompt and completion are tokenised apart, as a server tokenises the prompt alone; an end-of-text token
               is appended; loss on the completion and that token only
messages rows  the backbone's own chat template; loss on every assistant turn up to its end-of-turn token
tag rows       the words with spaces between, in the contract's template; one target at each word's first token
embed rows     each text in the contract's template, a sequence of its own; what is learnt is which belong together
other rows     the whole text in the contract's template, one target per row
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from umbel.backbone.backbone import Backbone
from umbel.backbone.texts import Encoded, encode_texts
from umbel.backbone.words import encode_words, join_words
from umbel.core.contract import Contract
from umbel.core.errors import ConfigError, DataError
from umbel.training.data.check import likely_label
from umbel.training.data.rows import ChatRow, LabelledRow, PairRow, PromptRow, Row, TaggedRow, ValuedRow


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One sequence of a task."""

    index: int
    """Its own place in the data; order and dropout masks hang on it."""
    ids: NDArray[np.int32]
    spoken: NDArray[np.bool_] | None
    """Generation: which ids are the answer's, predicted from the place before. The first id never is."""
    target: tuple[float, ...] = ()
    """Classify: the label's place, or 0 and 1 for each label. Regress: the value. Tag: each word's tag."""
    words: tuple[int, ...] = ()
    """Tag: where each word's own token stands."""
    weight: float = 1.0
    """How much each of its supervised tokens, words, or the row itself counts in the loss."""
    mates: tuple["Example", ...] = ()
    """Embed: the positive, and the hard negative where there is one."""

    @property
    def sequences(self) -> tuple["Example", ...]:
        """What goes through the backbone: this, and its mates."""
        return (self, *self.mates)

    @property
    def tokens(self) -> int:
        return sum(len(text.ids) for text in self.sequences)

    @property
    def longest(self) -> int:
        return max(len(text.ids) for text in self.sequences)

    @property
    def count(self) -> int:
        """What the loss is a mean over: supervised tokens, tagged words, or one row or pair."""
        if self.spoken is not None:
            return int(self.spoken.sum())
        return len(self.words) or 1

    @property
    def mass(self) -> float:
        """What the loss of a step is divided by: supervised places times their weight."""
        return self.weight * self.count


@dataclass(frozen=True, slots=True)
class EncodedRows:
    examples: Sequence[Example]
    truncated: int
    """Rows whose text was cut to ``max_length``."""
    left_out: int
    """Rows that are too long to learn an answer from: cutting one would teach a wrong end."""


def encode_rows(rows: Sequence[Row], contract: Contract, backbone: Backbone) -> EncodedRows:
    """Raises DataError for a label that the contract does not name and a text without tokens."""
    first = rows[0] if rows else None
    if isinstance(first, ChatRow):
        return _encode_chats([row for row in rows if isinstance(row, ChatRow)], contract, backbone)
    if isinstance(first, PromptRow):
        return _encode_prompts([row for row in rows if isinstance(row, PromptRow)], contract, backbone)
    if isinstance(first, TaggedRow):
        return _encode_tags([row for row in rows if isinstance(row, TaggedRow)], contract, backbone)
    if isinstance(first, PairRow):
        return _encode_pairs([row for row in rows if isinstance(row, PairRow)], contract, backbone)
    return _encode_texts(rows, contract, backbone)


def _encode_prompts(rows: Sequence[PromptRow], contract: Contract, backbone: Backbone) -> EncodedRows:
    prompts = encode_texts(backbone.tokenizer, contract, [row.prompt for row in rows])
    answers = backbone.tokenizer.encode_all([row.completion for row in rows])
    end, longest = end_token(backbone), backbone.config.max_positions
    kept = [
        _spoken(index, prompt.ids, [*answer, end], row.weight)
        for index, (row, prompt, answer) in enumerate(zip(rows, prompts, answers, strict=True))
        if 0 < len(prompt.ids) <= contract.max_length and len(prompt.ids) + len(answer) < longest
    ]
    return EncodedRows(kept, truncated=0, left_out=len(rows) - len(kept))


def _spoken(index: int, prompt: Sequence[int], answer: Sequence[int], weight: float) -> Example:
    spoken = np.zeros(len(prompt) + len(answer), dtype=np.bool_)
    spoken[len(prompt) :] = True
    return Example(index, np.array([*prompt, *answer], dtype=np.int32), spoken, weight=weight)


def end_token(backbone: Backbone) -> int:
    """The token that ends an answer: the tokenizer's own, if the model stops at it."""
    stops = backbone.config.eos
    own = backbone.tokenizer.eos
    if own is not None and (not stops or own in stops):
        return own
    if stops:
        return stops[0]
    raise ConfigError(
        f"backbone {backbone.name} has no end-of-text token, so an answer could never end.",
        code="no_end_token",
        hint="set eos_token_id in its config.json",
    )


def _encode_chats(rows: Sequence[ChatRow], contract: Contract, backbone: Backbone) -> EncodedRows:
    examples: list[Example] = []
    left_out = 0
    for row in rows:
        found = [part for part in chat_examples(row, backbone) if _fits(part, contract, backbone)]
        left_out += not found
        examples += [replace(part, index=len(examples) + i, weight=row.weight) for i, part in enumerate(found)]
    return EncodedRows(examples, truncated=0, left_out=left_out)


def _fits(example: Example, contract: Contract, backbone: Backbone) -> bool:
    assert example.spoken is not None
    last_answer = len(example.ids) - int(np.argmin(example.spoken[::-1]))  # ids before the last turn are its prompt
    return last_answer <= contract.max_length and len(example.ids) <= backbone.config.max_positions


def chat_examples(row: ChatRow, backbone: Backbone) -> list[Example]:
    """One sequence with loss on all assistant turns; more than one where the tokens of a later turn's prompt differ.

    A server tokenises the whole history at once, and merges across the border of a turn can then give other tokens
    than the turns apart. Where they do, the later turn gets a sequence of its own, with the server's tokens.
    """
    done: list[Example] = []
    ids: list[int] = []
    spoken: list[bool] = []
    for turn, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        prompt = backbone.tokenizer.chat(row.messages[:turn])
        if prompt[: len(ids)] != ids:
            done.append(_example(ids, spoken))
            ids, spoken = [], []
        spoken += [False] * (len(prompt) - len(ids))
        answer, after = _turn(row, turn, backbone)
        ids = [*prompt, *answer, *after]
        spoken += [True] * len(answer) + [False] * len(after)
    return [*done, _example(ids, spoken)]


def _example(ids: list[int], spoken: list[bool]) -> Example:
    last = len(spoken) - spoken[::-1].index(True)  # nothing after the last answer is read or learnt
    return Example(0, np.array(ids[:last], dtype=np.int32), np.array(spoken[:last], dtype=np.bool_))


def _turn(row: ChatRow, turn: int, backbone: Backbone) -> tuple[list[int], list[int]]:
    """(tokens to say, tokens of the template after them) of an assistant turn."""
    tokenizer = backbone.tokenizer
    before, whole = tokenizer.chat_text(row.messages[:turn]), tokenizer.chat_text(row.messages[: turn + 1], reply=False)
    if not whole.startswith(before):
        raise DataError(
            f"line {row.line}: the backbone's chat template rewrites earlier turns, so the answer has no fixed place.",
            code="template_not_additive",
            hint="use prompt/completion rows with this backbone",
        )
    tokens = tokenizer.encode(whole[len(before) :])
    stops = {end_token(backbone), *backbone.config.eos}
    stop = next((place for place, token in enumerate(tokens) if token in stops), None)
    if stop is None:  # a template without end-of-turn tokens: the model still has to learn where to stop
        return [*tokens, end_token(backbone)], []
    return tokens[: stop + 1], tokens[stop + 1 :]


def _encode_tags(rows: Sequence[TaggedRow], contract: Contract, backbone: Backbone) -> EncodedRows:
    """One target at each word's first token; words that were cut off have none."""
    examples: list[Example] = []
    truncated = left_out = 0
    for index, row in enumerate(rows):
        text, words = join_words(row.tokens)
        found = encode_words(backbone.tokenizer, contract, text, words)
        places = {tag: place for place, tag in enumerate(contract.labels)}
        kept = [
            (at, _place(tag, places, row)) for at, tag in zip(found.places, row.tags, strict=True) if at is not None
        ]
        truncated += found.cut > 0
        left_out += not kept
        if kept:
            ids = np.array(found.ids, dtype=np.int32)
            tags, places_of = tuple(tag for _, tag in kept), tuple(at for at, _ in kept)
            examples.append(Example(index, ids, None, tags, places_of, row.weight))
    return EncodedRows(examples, truncated, left_out)


def _place(label: str, places: dict[str, int], row: Row) -> float:
    if label not in places:
        known = list(places)
        like = likely_label(label, known)
        meant = f"did you mean {like!r}? " if like is not None else ""
        raise DataError(
            f"line {row.line}: label {label!r} is none of {', '.join(known)}.",
            code="unknown_label",
            hint=f"{meant}mend the row, or train with --labels {','.join([*known, label])}",
        )
    return float(places[label])


def _encode_pairs(rows: Sequence[PairRow], contract: Contract, backbone: Backbone) -> EncodedRows:
    """Row i's texts have the indices 3 i (the text), 3 i + 1 (positive), 3 i + 2 (negative): dropout hangs on them."""
    texts = [text for row in rows for text in (row.text, row.positive, row.negative or "")]
    found = encode_texts(backbone.tokenizer, contract, texts)
    examples: list[Example] = []
    truncated = 0
    for i, row in enumerate(rows):
        parts = found[3 * i : 3 * i + (2 if row.negative is None else 3)]
        first, *mates = (Example(3 * i + n, _filled(row, part), None) for n, part in enumerate(parts))
        examples.append(replace(first, mates=tuple(mates), weight=row.weight))
        truncated += any(part.cut for part in parts)
    return EncodedRows(examples, truncated, left_out=0)


def _encode_texts(rows: Sequence[Row], contract: Contract, backbone: Backbone) -> EncodedRows:
    encoded = encode_texts(backbone.tokenizer, contract, [_text(row) for row in rows])
    target = _target(contract)
    examples = [
        Example(index, _filled(row, found), None, target(row), weight=row.weight)
        for index, (row, found) in enumerate(zip(rows, encoded, strict=True))
    ]
    return EncodedRows(examples, truncated=sum(found.cut > 0 for found in encoded), left_out=0)


def _text(row: Row) -> str:
    assert isinstance(row, LabelledRow | ValuedRow), "rows were read in a form of the head's"
    return row.text


def _filled(row: Row, found: Encoded) -> NDArray[np.int32]:
    if not found.ids:
        raise DataError(f"line {row.line}: the text has no tokens.", code="empty_text", hint="drop that row")
    return np.array(found.ids, dtype=np.int32)


def _target(contract: Contract) -> Callable[[Row], tuple[float, ...]]:
    places = {label: place for place, label in enumerate(contract.labels)}

    def target(row: Row) -> tuple[float, ...]:
        if isinstance(row, ValuedRow):
            return (row.value,)
        assert isinstance(row, LabelledRow)
        chosen = [_place(label, places, row) for label in row.labels]
        if contract.multi_label:
            return tuple(float(place in chosen) for place in range(len(places)))
        return (chosen[0],)

    return target
