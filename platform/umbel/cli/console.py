"""What every command prints with: tables, JSON, sizes, times, examples, errors.

Results go to stdout, everything else to stderr, so a pipe sees results only.
"""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TextIO

import typer

from umbel.core.errors import UmbelError
from umbel.core.sizes import human_bytes as human_bytes
from umbel.core.ways import in_the_shell
from umbel.core.wheels import Say, silent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown

_GAP = 2
"""Between two columns of a table."""
_ROOM = 16
"""What a folded column has at least, where the terminal is wide enough."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quantise = Annotated[
    str | None,
    typer.Option(help="Hold the linears in fewer bits; none: as in the checkpoint.", metavar="int8|int4|nf4|none"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def examples(*commands: str, note: str = "") -> str:
    """An ``epilog=`` for a command's help. The line of ``\\b`` tells typer to keep the line breaks after it."""
    lines = (line for command in commands for line in _example(command))
    return "\n".join(["\b", "Examples:", *lines, *(["", note] if note else [])])


_NARROW = 80
"""Columns of the narrowest usual terminal."""


def _example(command: str) -> Iterator[str]:
    """A command and perhaps a remark after it, as lines that fit a narrow terminal and still run when copied."""
    whole = f"  {command}"
    if len(whole) <= _NARROW:
        yield whole
        return
    plain, _, remark = command.partition("   ")
    line = "  "
    for word in re.split(r" (?=--)", plain):
        if len(line) + len(word) > _NARROW - len(" \\"):
            yield f"{line.rstrip()} \\"
            line = "      "
        line += f"{word} "
    yield line.rstrip()
    if remark:
        yield f"      {remark.strip()}"


def say_to_stderr(quiet: bool) -> Say:
    """For progress that a person waits with."""
    return silent if quiet else lambda line: write_line(sys.stderr, line)


def write_line(out: TextIO, line: str) -> None:
    """A line of progress. Where whoever read it went away (``| head``), work goes on and is told to nobody."""
    try:
        out.write(line + "\n")
        out.flush()
    except BrokenPipeError:
        to_nobody(out)


def to_nobody(out: TextIO) -> None:
    """From now on, and for what waits in its buffer: Python would raise again at the next line and at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)


def print_json(value: Any) -> None:
    """One JSON value: dataclasses, pydantic models, paths and times included."""
    typer.echo(json.dumps(value, default=_jsonable, indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    under: Sequence[str] = (),
    spill: Sequence[str] = (),
) -> None:
    """Aligned in a terminal; tab-separated with a header line in a pipe, nothing cut short.

    ``empty`` is told, on stderr, where there is no row: say which command makes the first. ``under`` names columns
    whose cells go under their row, each with its name, in a terminal that is too narrow for all; ``spill`` those of
    which only what is too long does so.
    """
    if not rows:
        typer.echo(empty, err=True)
        return
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_aligned(columns, texts, under, spill)
    else:
        for line in [columns, *texts]:
            typer.echo("\t".join(line))


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned; a list takes one line per item, None is left out."""
    indent = max(len(name) for name, _ in facts) + _GAP
    for name, value in facts:
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for index, line in enumerate(line for item in items for line in folded(str(item), indent)):
            typer.echo(f"{'' if index else name:<{indent}}{line}")


def folded(text: str, indent: int) -> list[str]:
    """At the spaces, to what a terminal has beside the indent; a pipe gets it whole."""
    if not sys.stdout.isatty():
        return [text]
    width = max(shutil.get_terminal_size().columns - indent, _ROOM)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def print_heading(text: str) -> None:
    """Starts a part of a longer answer."""
    typer.echo(f"\n{_styled('1', text, sys.stdout)}")


def print_markdown(text: str) -> None:
    """Rendered in a terminal, where its front matter says nothing to a person; as it is in a pipe."""
    if not sys.stdout.isatty():
        typer.echo(text.rstrip("\n"))
        return
    from rich.console import Console

    Console().print(_markdown_type()(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)))


def _markdown_type() -> "type[Markdown]":
    """rich's Markdown, but its tables fold what is too wide: they would end a digest in "..."."""
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class WholeTable(TableElement):
        def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
            for made in super().__rich_console__(console, options):
                for column in made.columns if isinstance(made, Table) else ():
                    column.overflow = "fold"
                yield made

    class WholeMarkdown(Markdown):
        elements: ClassVar = {**Markdown.elements, "table_open": WholeTable}

    return WholeMarkdown


def print_error(error: UmbelError, *, as_json: bool) -> None:
    """``error:`` and ``fix:`` on stderr, or OpenAI's error object with the hint in it."""
    hint = None if error.hint is None else in_the_shell(error.hint)
    if as_json:
        body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        write_line(sys.stderr, json.dumps({"error": body | {"hint": hint}}, ensure_ascii=False))
        return
    write_line(sys.stderr, f"{_red('error:')} {error.message}")
    if hint:
        write_line(sys.stderr, f"  {_bold('fix:')} {hint}")


def error_line(error: BaseException) -> str:
    """The first line of any exception's text."""
    return (str(error).splitlines() or ["no message"])[0]


def human_number(count: int, noun: str) -> str:
    """``1 key``, ``2,000 keys``."""
    return f"{human_count(count)} {noun}{'' if count == 1 else 's'}"


def human_count(count: int) -> str:
    """``33,498``."""
    return f"{count:,}"


def human_seconds(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def human_time(at_ms: int) -> str:
    """Milliseconds since 1970 as ``2026-01-31 09:05 UTC``."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def human_age(at_ms: int, now_ms: int) -> str:
    """``12 s ago``, ``5 min ago``, ``3 h ago``, ``2 days ago``."""
    seconds = max(0, now_ms - at_ms) // 1000
    for size, unit in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"
    return f"{seconds} s ago"


def _print_aligned(
    columns: Sequence[str], rows: Sequence[Sequence[str]], under: Sequence[str], spill: Sequence[str]
) -> None:
    room = shutil.get_terminal_size().columns
    away = [under] * len(rows) if under else _too_long(columns, rows, spill, room)
    beside = [index for index, column in enumerate(columns) if column not in under]
    lines = [columns, *(_without(gone, columns, row) for row, gone in zip(rows, away, strict=True))]
    lines = [[line[index] for index in beside] for line in lines]
    if _width((columns, *rows)) <= room or _width(lines) > room or not any(away):
        return _print_rich(columns, rows)
    widths = [max(map(len, cells)) + _GAP for cells in zip(*lines, strict=True)]
    for number, cells in enumerate(lines):
        line = "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        typer.echo(line if number else _styled("1", line, sys.stdout))
        if number:
            row = dict(zip(columns, rows[number - 1], strict=True))
            _print_under({name.lower(): row[name] for name in away[number - 1]})
    return None


def _too_long(
    columns: Sequence[str], rows: Sequence[Sequence[str]], spill: Sequence[str], room: int
) -> list[Sequence[str]]:
    """For each row ``spill``, where a cell of it does not fit beside the other columns, or nothing."""
    if not spill:
        return [()] * len(rows)
    places = [columns.index(name) for name in spill]
    others = [[cell for place, cell in enumerate(row) if place not in places] for row in (columns, *rows)]
    widest = (room - _width(others)) // len(spill) - _GAP
    return [spill if any(len(row[place]) > widest for place in places) else () for row in rows]


def _without(gone: Sequence[str], columns: Sequence[str], row: Sequence[str]) -> list[str]:
    return ["" if name in gone else cell for name, cell in zip(columns, row, strict=True)]


def _print_under(cells: Mapping[str, str]) -> None:
    """What belongs to the row above, each cell with its name; an empty one says nothing."""
    for name, cell in cells.items():
        indent = _GAP + len(name) + 1
        for number, line in enumerate(folded(cell, indent) if cell else ()):
            typer.echo(f"{'' if number else ' ' * _GAP + name:<{indent}}{line}")


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Of a table, its header among the rows, with no cell folded."""
    widest = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return sum(widest) + _GAP * (len(widest) - 1)


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column, whole in zip(columns, _kept_whole(columns, rows, console.width), strict=True):
        table.add_column(column, overflow="fold", no_wrap=whole)  # a digest that ends in "..." cannot be copied
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name with brackets is no markup
    console.print(table)


def _kept_whole(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[bool]:
    """Which columns are never folded: the narrowest ones, as long as each of the others has room left."""
    widest = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    narrowest_first = sorted(range(len(columns)), key=widest.__getitem__)
    kept, used = [False] * len(columns), 0
    for done, index in enumerate(narrowest_first, start=1):
        used += widest[index] + _GAP
        kept[index] = used + (len(columns) - done) * (_ROOM + _GAP) <= width
    return kept


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _red(text: str) -> str:
    return _styled("1;31", text, sys.stderr)


def _bold(text: str) -> str:
    return _styled("1", text, sys.stderr)


def _styled(code: str, text: str, stream: TextIO) -> str:
    plain = "NO_COLOR" in os.environ or not stream.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
