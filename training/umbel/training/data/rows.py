"""Rows of JSONL or CSV in six forms, each checked as it is read: a wrong row is told with its line and the right form.

Every form may have a ``weight`` above 0: how much the row counts in the loss (1 where there is none). Keys beyond a
form's own are left alone (an id, a source), so a file may carry more than training needs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from umbel.core.contract import OutputHead
from umbel.core.errors import DataError, NotFound
from umbel.training.data.records import AS_NAMED, Columns, is_csv, read_records


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A text and its label; several, or none, where the data are multi-label."""

    line: int
    text: str
    labels: tuple[str, ...]
    multi: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ValuedRow:
    line: int
    text: str
    value: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """Words and one tag for each."""

    line: int
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PairRow:
    """Texts that mean alike, and one that does not."""

    line: int
    text: str
    positive: str
    negative: str | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """``accepted`` are all right answers (``completions`` in the file), of which ``completion`` is trained on."""

    line: int
    prompt: str
    completion: str
    accepted: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation that ends with the assistant; every assistant turn is trained on."""

    line: int
    messages: tuple[dict[str, str], ...]
    weight: float = 1.0


Row = LabelledRow | ValuedRow | TaggedRow | PairRow | PromptRow | ChatRow
_KINDS: Mapping[str, Callable[..., Row]] = {kind.__name__: kind for kind in get_args(Row)}


def row_of(kind: str, fields: Mapping[str, Any]) -> Row:
    """A row of the class of that name."""
    return _KINDS[kind](**fields)


FORMS: Mapping[str, str] = {
    "classify": '{"text": "...", "label": "..."}  (label may be a list: multi-label)',
    "regress": '{"text": "...", "value": 0.5}',
    "tag": '{"tokens": ["...", ...], "tags": ["...", ...]}',
    "embed": '{"text": "...", "positive": "...", "negative": "..."}  (negative may be left out)',
    "prompt": '{"prompt": "...", "completion": "..."}',
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
}
"""Each form as a person writes it."""

_KEYS = {
    "messages": {"messages"},
    "prompt": {"prompt", "completion"},
    "tag": {"tokens", "tags"},
    "embed": {"text", "positive"},
    "regress": {"text", "value"},
    "classify": {"text", "label"},
}
_HEADERS = {
    "classify": "text,label",
    "regress": "text,value",
    "tag": "tokens,tags",
    "embed": "text,positive",
    "prompt": "prompt,completion",
    "messages": "messages",
}
"""Each form's keys as the header of a CSV file."""
_ROLES = ("system", "user", "assistant")


def forms_of(head: OutputHead) -> tuple[str, ...]:
    """The forms that an output head can be trained on."""
    return ("prompt", "messages") if head is OutputHead.GENERATE else (head.value,)


def labels_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Every label or tag of the rows, in the alphabet's order."""
    found = {label for row in rows for label in getattr(row, "labels", ())}
    found |= {tag for row in rows for tag in getattr(row, "tags", ())}
    return tuple(sorted(found))


OTHER_LABEL = "add rows with another label, or name the column of the labels with --label-column"
ALL_TOO_LONG = "raise --max-length, or shorten the rows"
"""Fixes that a check and a training say alike."""


def only_label(rows: Iterable[Row]) -> str | None:
    """The one label or tag that all rows have; None where they have several, or another form.

    Reads no further than it must. Where a row may have several labels, one of them is enough.
    """
    found: set[str] = set()
    for row in rows:
        if not isinstance(row, LabelledRow | TaggedRow) or (isinstance(row, LabelledRow) and row.multi):
            return None
        found.update(labels_of((row,)))
        if len(found) > 1:
            return None
    return next(iter(found), None)


def nothing_to_tell_apart(path: Path, label: str) -> DataError:
    return DataError(
        f"every row of {path} has the label {label!r}: there is nothing to tell apart.",
        code="missing_labels",
        hint=OTHER_LABEL,
    )


def read_rows(
    path: Path, head: OutputHead | None = None, *, limit: int | None = None, columns: Columns = AS_NAMED
) -> list[Row]:
    """The first ``limit`` rows of a file, all of one form: one of the head's, or of any form where ``head`` is None.

    Raises NotFound (``data_not_found``) or DataError: ``empty_file``, ``wrong_form``, ``mixed_forms``, ``empty_text``,
    and what ``read_records`` raises.
    """
    check_there(path)
    return list(iter_rows(path, head, limit=limit, columns=columns))


def iter_rows(
    path: Path, head: OutputHead | None = None, *, limit: int | None = None, columns: Columns = AS_NAMED
) -> Iterator[Row]:
    """As ``read_rows``, one after the other; a file that is there is taken for granted."""
    form, names, first = "", _names(head, columns), None
    for number, raw in islice(read_records(path, names), limit):
        place = _Place(path, number, names)
        if not form:
            form = form_of(raw, place, forms_of(head) if head else tuple(FORMS))
        row = _parse(raw, form, place)
        first = first or row
        _check_alike(first, row, path)
        yield row
    if first is None:
        raise no_rows(path)


def no_rows(path: Path) -> DataError:
    table = "write rows under the header"
    if not path.stat().st_size:
        table = "write a header (text,label) and rows under it"
    hint = table if is_csv(path) else "write one JSON object per line"
    return DataError(f"{path} holds no rows.", code="empty_file", hint=hint)


def check_there(path: Path) -> None:
    if not path.is_file():
        raise NotFound(
            f"there is no file {path}.",
            code="data_not_found",
            hint="give a JSONL or CSV file, or the name of a dataset: umbel datasets list",
        )


_NAMED_BY = {
    OutputHead.CLASSIFY: ("text", "label"),
    OutputHead.REGRESS: ("text", "value"),
    OutputHead.TAG: ("tokens", "tags"),
    OutputHead.EMBED: ("text", "positive"),
    OutputHead.GENERATE: ("prompt", "completion"),
}
"""Which keys of a head's rows ``Columns`` names."""


def _names(head: OutputHead | None, columns: Columns) -> dict[str, str]:
    """Keys to the file's names for them, where it has its own; without a head they are a classifier's."""
    keys = _NAMED_BY[head or OutputHead.CLASSIFY]
    given = zip(keys, (columns.text, columns.label), strict=True)
    return {key: name for key, name in given if name is not None}


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    line: int
    names: Mapping[str, str] = field(default_factory=dict)

    def wrong(self, why: str, form: str, *, code: str = "wrong_form") -> DataError:
        empty = "write a text there, or leave the row out"
        hint = empty if code == "empty_text" else self.fix((form,))
        return DataError(f"{self.path} line {self.line}: {why}.", code=code, hint=hint)

    def key(self, key: str) -> str:
        """What the file calls it, as it is said in an error."""
        named = repr(self.names.get(key, key))
        return f"column {named}" if is_csv(self.path) else named

    def fix(self, forms: tuple[str, ...]) -> str:
        heads = {form: head for head in OutputHead for form in forms_of(head) if form in forms}
        one = len(set(heads.values())) == 1  # else nobody said which task it shall be
        if is_csv(self.path):
            headers = " or ".join(_HEADERS[form] if one else f"{_HEADERS[form]} ({heads[form]})" for form in forms)
            return f"give the file the header {headers}, or name its columns with --text-column and --label-column"
        if one:
            return "write rows as " + "\n    or: ".join(FORMS[form] for form in forms)
        told = "".join(f"\n    {heads[form]}: {FORMS[form]}" for form in forms)
        return f"write rows as their task needs them (--task names it){told}"


def form_of(raw: Mapping[str, Any], place: _Place, allowed: tuple[str, ...]) -> str:
    """The first of the forms whose keys are all there."""
    found = next((form for form, keys in _KEYS.items() if form in allowed and keys <= raw.keys()), None)
    if found is None:
        raise DataError(
            f"{place.path} line {place.line}: a row with the keys {sorted(raw)} is of another form.",
            code="wrong_form",
            hint=place.fix(tuple(form for form in allowed if _KEYS[form] & raw.keys()) or allowed),
        )
    return found


def _parse(raw: Mapping[str, Any], form: str, place: _Place) -> Row:
    if missing := sorted(_KEYS[form] - raw.keys()):
        raise place.wrong(f"{place.key(missing[0])} is missing", form)
    row = _PARSERS[form](raw, place)
    return replace(row, weight=_weight(raw, form, place)) if "weight" in raw else row


def _weight(raw: Mapping[str, Any], form: str, place: _Place) -> float:
    weight = raw["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise place.wrong(f"{place.key('weight')} is {weight!r}, no number above 0", form)
    return float(weight)


def _labelled(raw: Mapping[str, Any], place: _Place) -> LabelledRow:
    label = raw["label"]
    found = label if isinstance(label, list) else [label]
    if not all(isinstance(each, str | int) and not isinstance(each, bool) and each != "" for each in found):
        raise place.wrong(f"{place.key('label')} is {label!r}, neither a text nor a list of texts", "classify")
    labels = tuple(dict.fromkeys(str(each) for each in found))
    return LabelledRow(place.line, _text(raw, "text", "classify", place), labels, isinstance(label, list))


def _valued(raw: Mapping[str, Any], place: _Place) -> ValuedRow:
    value = raw["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise place.wrong(f"{place.key('value')} is {value!r}, no finite number", "regress")
    return ValuedRow(place.line, _text(raw, "text", "regress", place), float(value))


def _tagged(raw: Mapping[str, Any], place: _Place) -> TaggedRow:
    tokens, tags = raw["tokens"], raw["tags"]
    for name, value in (("tokens", tokens), ("tags", tags)):
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise place.wrong(f"{place.key(name)} is not a list of texts", "tag")
    if len(tokens) != len(tags):
        raise place.wrong(f"{len(tokens)} tokens but {len(tags)} tags", "tag")
    return TaggedRow(place.line, tuple(tokens), tuple(tags))


def _pair(raw: Mapping[str, Any], place: _Place) -> PairRow:
    negative = None if raw.get("negative") is None else _text(raw, "negative", "embed", place)
    return PairRow(place.line, _text(raw, "text", "embed", place), _text(raw, "positive", "embed", place), negative)


def _prompted(raw: Mapping[str, Any], place: _Place) -> PromptRow:
    prompt, completion = _text(raw, "prompt", "prompt", place), _text(raw, "completion", "prompt", place)
    accepted = raw.get("completions", [completion])
    if not isinstance(accepted, list) or not accepted or not all(isinstance(each, str) and each for each in accepted):
        raise place.wrong(f"{place.key('completions')} is not a list of texts", "prompt")
    return PromptRow(place.line, prompt, completion, tuple(accepted))


def _chat(raw: Mapping[str, Any], place: _Place) -> ChatRow:
    messages = raw["messages"]
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise place.wrong(
            f"{place.key('messages')} is not a list of role and content, with roles {', '.join(_ROLES)}", "messages"
        )
    if not messages or messages[-1]["role"] != "assistant" or messages[0]["role"] == "assistant":
        raise place.wrong("a conversation starts with the user (or system) and ends with the assistant", "messages")
    if any(not message["content"].strip() for message in messages if message["role"] == "assistant"):
        raise place.wrong("an assistant turn is empty", "messages", code="empty_text")
    return ChatRow(place.line, tuple({"role": m["role"], "content": m["content"]} for m in messages))


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)


def _text(raw: Mapping[str, Any], key: str, form: str, place: _Place) -> str:
    value = raw[key]
    if not isinstance(value, str):
        raise place.wrong(f"{place.key(key)} is {value!r}, not a text", form)
    if not value.strip():
        raise place.wrong(f"{place.key(key)} is empty", form, code="empty_text")
    return value


_PARSERS: Mapping[str, Callable[[Mapping[str, Any], _Place], Row]] = {
    "classify": _labelled,
    "regress": _valued,
    "tag": _tagged,
    "embed": _pair,
    "prompt": _prompted,
    "messages": _chat,
}


def _check_alike(first: Row, row: Row, path: Path) -> None:
    """One label, or a list of labels, but the same on every line: guessing would change what is trained."""
    if isinstance(first, LabelledRow) and isinstance(row, LabelledRow) and row.multi != first.multi:
        kinds = ("a list", "one label") if row.multi else ("one label", "a list")
        raise DataError(
            f"{path} line {row.line} has {kinds[0]} where line {first.line} has {kinds[1]}.",
            code="mixed_forms",
            hint="write every label as a list for multi-label, or none",
        )


def text_of(row: Row) -> str:
    """What decides a row's split, and whether two rows are copies: the input, without the answer."""
    if isinstance(row, PromptRow):
        return row.prompt
    if isinstance(row, ChatRow):
        return "\n".join(message["content"] for message in row.messages if message["role"] != "assistant")
    if isinstance(row, TaggedRow):
        return " ".join(row.tokens)
    return row.text
