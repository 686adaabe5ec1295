"""Files of records: JSON Lines and CSV become the same objects, each with the line it starts on.

A CSV file has a header; its names are the JSON keys. A cell is a text, but for those keys whose JSON is no text:

    value, weight                 a number
    tokens, tags                  words with spaces between, or a JSON list
    label                         a text, or a JSON list (multi-label)
    messages, completions         a JSON list

A cell that is none of these stays the text it is, and whoever needs the key refuses it. An empty cell of
``negative``, ``weight`` or ``completions`` is as if the key were not there.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from umbel.core.errors import DataError, NotFound

Records = Iterator[tuple[int, dict[str, Any]]]
"""(line, object), in the order of the file."""

CSV_SUFFIXES = (".csv", ".tsv")
_SUFFIXES = (".jsonl", *CSV_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Columns:
    """The file's own names for what a form calls text and answer; None keeps the form's."""

    text: str | None = None
    label: str | None = None


AS_NAMED = Columns()


def is_csv(path: Path) -> bool:
    return path.suffix.lower() in CSV_SUFFIXES


def part_of(folder: Path, split: str) -> Path:
    """A split's file in a folder: ``train.jsonl``, or ``train.csv`` where only that is there."""
    found = (folder / f"{split}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in found if path.is_file()), folder / f"{split}.jsonl")


def needed_part(folder: Path, split: str) -> Path:
    """As ``part_of``; raises NotFound (``data_not_found``) where the folder has no such file."""
    path = part_of(folder, split)
    if path.is_file():
        return path
    *first, last = (f"{split}{suffix}" for suffix in _SUFFIXES)
    raise NotFound(
        f"the folder {folder} has no {', '.join(first)} or {last}.",
        code="data_not_found",
        hint="name its files so, or give one file's path",
    )


def read_records(path: Path, names: Mapping[str, str] | None = None) -> Records:
    """Objects of a file, CSV by its suffix. ``names`` maps keys to the file's names for them.

    Raises DataError naming file and line, and the column where there is one: ``invalid_json``, ``invalid_csv``,
    ``invalid_utf8``, ``wrong_form``, ``unknown_column``.
    """
    names = names or {}
    found = _rows(path, names) if is_csv(path) else _objects(path)
    for line, record in found:
        yield line, _renamed(record, names, path, line) if names else record


def _renamed(record: dict[str, Any], names: Mapping[str, str], path: Path, line: int) -> dict[str, Any]:
    """The record under its form's keys; a named column takes the place of a key that is there by chance."""
    taken = dict(record)
    for key, name in names.items():
        if name not in record:
            what = f"the header of {path} has no column" if is_csv(path) else f"{path} line {line}: there is no key"
            raise DataError(
                f"{what} {name!r}, only {', '.join(map(repr, record)) or 'nothing'}.",
                code="unknown_column",
                hint=f"give {'--text-column' if key in _TEXTS else '--label-column'} one of these names",
            )
        taken[key] = record[name]
    return taken


def _objects(path: Path) -> Records:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line, path, number)


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise _no_utf8(path, number, error) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number}: not JSON ({error.msg}, column {error.colno}).",
            code="invalid_json",
            hint="write one JSON object per line, without line breaks inside; name a CSV file .csv",
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path} line {number}: a {type(value).__name__}, not an object.",
            code="wrong_form",
            hint='write rows such as {"text": "...", "label": "..."}',
        )
    return value


def _rows(path: Path, names: Mapping[str, str]) -> Records:
    """Records of a CSV file; a quoted cell may hold line breaks, and the line told is the record's first."""
    keys = {name: key for key, name in names.items()}
    with path.open("rb") as file:  # here, so that an error leaves no reader with an open file behind
        reader = csv.reader(_lines(file, path), delimiter=_delimiter(path), strict=True)
        header = _header(reader, path)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _invalid(path, line, f"not CSV ({error})") from None
            if cells:
                yield line, _record(header, cells, keys, path, line)


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _no_utf8(path, number, error) from None


def _no_utf8(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path} line {number}: byte {error.start} is no UTF-8.", code="invalid_utf8", hint="save the file as UTF-8"
    )


def _delimiter(path: Path) -> str:
    """A tab in ``.tsv``; else a comma, or the semicolon of a header that has no comma (as European Excel saves)."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        first = file.readline()
    return ";" if b";" in first and b"," not in first else ","


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise _invalid(path, 1, f"not CSV ({error})") from None
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise _invalid(path, 1, f"two columns are called {twice!r}")
    return header


def _record(header: list[str], cells: list[str], keys: Mapping[str, str], path: Path, line: int) -> dict[str, Any]:
    if len(cells) != len(header):
        raise _invalid(path, line, f"{len(cells)} cells under the header's {len(header)} columns")
    found = {}
    for column, cell in zip(header, cells, strict=True):
        key = keys.get(column, column)
        if cell.strip() or key not in _OPTIONAL:
            found[column] = _CELLS[key](cell.strip()) if key in _CELLS else cell
    return found


def _invalid(path: Path, line: int, why: str) -> DataError:
    return DataError(
        f"{path} line {line}: {why}.",
        code="invalid_csv",
        hint='quote cells that hold commas, quotes or line breaks: "so ""quoted"", as here"',
    )


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _words(cell: str) -> Any:
    return _list(cell) if cell.startswith("[") else cell.split()


def _list(cell: str) -> Any:
    """A label such as ``[other]`` is a text: only what is JSON is a list."""
    try:
        return json.loads(cell) if cell.startswith("[") else cell
    except json.JSONDecodeError:
        return cell


_CELLS: Mapping[str, Callable[[str], Any]] = {
    "value": _number,
    "weight": _number,
    "tokens": _words,
    "tags": _words,
    "label": _list,
    "messages": _list,
    "completions": _list,
}
_OPTIONAL = ("negative", "weight", "completions")
_TEXTS = ("text", "tokens", "prompt")
"""Keys that ``Columns.text`` may name; any other that is named is the answer's."""
