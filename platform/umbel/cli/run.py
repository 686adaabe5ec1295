"""``umbel run``: ask one adapter, a text or a file of them."""

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.choosing import check_form_of
from umbel.cli.console import Json, Quantise, examples, human_count, human_number, print_json
from umbel.core.contract import OutputHead
from umbel.core.errors import NotFound, UmbelError, UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.client import AsyncClient
    from umbel.core.wire.base import Model

app = typer.Typer(help="Ask one adapter, from the shell or a file.")

_AT_ONCE = 64
"""Rows of a file that are on their way at once."""
_WRITING = ("max_tokens", "temperature", "seed")
"""Options of those that write."""
_ASKED = ("text", "prompt", "messages", "tokens")
"""Keys of a row that hold what is asked."""


@app.command(
    epilog=examples(
        'umbel run sentiment "what a lovely day"',
        'umbel run pronounce:2 "adapter" --json',
        "umbel run sentiment --input tweets.jsonl --output labelled.jsonl",
        "head -5 tweets.jsonl | umbel run sentiment --input -",
        "umbel run sentiment --input reviews.csv --text-column review --output labelled.csv",
        'umbel run sentiment "hello" --url http://127.0.0.1:8000',
        note="Exit code 1: some rows of the file could not be answered; they are in the output with their error.",
    )
)
def run(
    model: Annotated[str, typer.Argument(help="name, name:3, name@alias or the backbone's name.", metavar="NAME")],
    text: Annotated[str | None, typer.Argument(help="The text to ask; - reads it from stdin.", metavar="TEXT")] = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", help="JSONL or CSV with text, prompt or messages; - reads JSONL from stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where its answers go, JSONL or CSV; default stdout.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The file's own name for the text.", metavar="NAME")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answer.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Classifiers: give no label that is less probable.", min=0, max=1)
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Default: the one that NAME was made for.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), bf16, fp16 or fp32.")] = "auto",
    quantise: Quantise = None,
    url: Annotated[str | None, typer.Option(help="Ask this server instead of loading the backbone here.")] = None,
    as_json: Json = False,
) -> None:
    """Ask one adapter. Without --url the backbone is loaded in this process for as long as it takes.

    Each row of a file comes back with its answer beside it. What the row had under a name of the answer's, such as
    its true label, is kept as given_label.
    """
    if (text is None) == (input is None):
        raise UsageError("give either a text or --input.", hint=f'umbel run {model} "some text"')
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "abstain_below": abstain_below}
    options = {key: value for key, value in given.items() if value is not None}
    if text == "-":
        text = typer.get_text_stream("stdin").read()
    check_form_of(url, quantise=quantise, backbone=backbone, dtype=None if dtype == "auto" else dtype)
    with _readable(input) as file:
        asyncio.run(_run(model, text, (file, output, text_column), options, (backbone, dtype, quantise, url), as_json))


@contextmanager
def _readable(input: Path | None) -> "Iterator[Path | None]":
    """The file; what stdin holds is written to one, which every reader of rows can read twice."""
    if input != Path("-"):
        yield input
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "stdin.jsonl"
        file.write_bytes(typer.get_binary_stream("stdin").read())
        yield file


async def _run(
    model: str,
    text: str | None,
    files: tuple[Path | None, Path | None, str | None],
    options: Mapping[str, Any],
    where: tuple[str | None, str, str | None, str | None],
    as_json: bool,
) -> None:
    """``files`` are input, output and the input's name for its texts; ``where`` backbone, dtype, form and server."""
    input, output, column = files
    if input is not None and not input.is_file():
        raise NotFound(
            f"there is no file {input}.", code="file_not_found", hint="check the path; it is a JSONL or CSV file"
        )
    async with _client(model, *where) as client:
        found = await client.model(model)
        _warn(found)
        head = OutputHead(found.output_head or OutputHead.GENERATE)
        _check_options(model, head, options)
        if input is None:
            await _one(client, model, head, text or "", options, as_json)
        else:
            await _file(client, model, head, (input, output, column), options)


def _check_options(model: str, head: OutputHead, options: Mapping[str, Any]) -> None:
    """Raises UsageError for a flag that would change nothing of this head's answers."""
    if "abstain_below" in options and head is not OutputHead.CLASSIFY:
        raise UsageError(f"{model} is no classifier: it has no label to keep back.", hint="omit --abstain-below")
    for name in _WRITING:
        if name in options and head is not OutputHead.GENERATE:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{model} writes no text ({head}): {flag} would change nothing.", hint=f"omit {flag}")


async def _one(
    client: "AsyncClient", model: str, head: OutputHead, text: str, options: Mapping[str, Any], as_json: bool
) -> None:
    from umbel.cli.asking import ask

    answer = await ask(client, model, head, {"text": text}, options)
    if as_json:
        return print_json(answer)
    return typer.echo(told(head, answer))


def told(head: OutputHead, answer: Mapping[str, Any]) -> str:
    """An answer as a person reads it."""
    if head is OutputHead.GENERATE:
        return str(answer["output"])
    if head is OutputHead.CLASSIFY:
        label = answer["label"]
        first = ", ".join(label) if isinstance(label, list) else label
        kept_back = "(abstains: no label is likely enough)" if answer["abstained"] else "(no label)"
        likely = sorted(zip(answer["probs"], answer["labels"], strict=True), reverse=True)
        return "\n".join([first or kept_back, *(f"  {p:6.1%}  {name}" for p, name in likely)])
    if head is OutputHead.REGRESS:
        return f"{answer['score']:.4g}"
    if head is OutputHead.TAG:
        return "\n".join(f"{tag['word']}\t{tag['tag']}\t{tag['prob']:.3f}" for tag in answer["tags"])
    return json.dumps(answer["embedding"])


async def _file(
    client: "AsyncClient",
    model: str,
    head: OutputHead,
    files: tuple[Path, Path | None, str | None],
    options: Mapping[str, Any],
) -> None:
    """Answers in the file's order; the output appears under its name once it is whole."""
    from umbel.cli.asking import ask, failed
    from umbel.training.data.records import is_csv, read_records
    from umbel.training.data.rows import no_rows

    input, output, column = files

    window = asyncio.Semaphore(_AT_ONCE)

    async def answered(row: dict[str, Any]) -> dict[str, Any]:
        async with window:
            try:
                return await ask(client, model, head, row, options)
            except UmbelError as error:
                return failed(error)

    names = {} if column is None else {"text": column}
    asked = [row for _, row in read_records(input, names)]  # a line that cannot be read is told before any is asked
    if not asked:
        raise no_rows(input)
    own = asked if column is None else [row for _, row in read_records(input)]
    if is_csv(input) and not any(key in asked[0] for key in _ASKED):
        raise UsageError(
            f"no column of {input} is called text: its header is {', '.join(asked[0])}.",
            code="unknown_column",
            param="text_column",
            hint="say which of them holds the texts: --text-column NAME",
        )
    answers = await asyncio.gather(*(answered(row) for row in asked))
    rows = [_beside(row, answer) for row, answer in zip(own, answers, strict=True)]
    _write(rows, output)
    bad = [row for row in rows if "error" in row]
    typer.echo(f"{human_number(len(rows) - len(bad), 'row')} answered, {human_count(len(bad))} failed", err=True)
    if bad:
        raise UmbelError(
            f"{human_number(len(bad), 'row')} failed; the first: {bad[0]['error']['message']}", code="rows_failed"
        )


def _beside(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The row with its answer; what stood under a name of the answer's goes on as ``given_NAME``, once and for all."""
    given = {f"given_{key}": value for key, value in row.items() if key in answer}
    return row | {key: value for key, value in given.items() if key not in row} | answer


def _write(rows: list[dict[str, Any]], output: Path | None) -> None:
    if output is None:
        typer.echo(_lines(rows), nl=False)
        return
    from umbel.training.data.records import is_csv

    partial = output.with_name(f".{output.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(_table(rows, "\t" if output.suffix == ".tsv" else ",") if is_csv(output) else _lines(rows))
    os.replace(partial, output)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(rows: list[dict[str, Any]], delimiter: str) -> str:
    """CSV; what is neither text nor number is JSON in its cell, as ``--input`` reads it."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(row.get(key)) for key in header] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _warn(found: "Model") -> None:
    """Says on stderr that a version is advised against, and why."""
    if found.state == "deprecated":
        typer.echo(f"beware: {found.root} is deprecated: {found.reason}", err=True)


@asynccontextmanager
async def _client(
    model: str, backbone: str | None, dtype: str, quantise: str | None, url: str | None
) -> "AsyncIterator[AsyncClient]":
    from umbel.cli.asking import local_client
    from umbel.cli.choosing import choose_for
    from umbel.cli.serve import load
    from umbel.client import AsyncClient

    if url is not None:
        async with AsyncClient(url) as remote:
            yield remote
        return
    settings = Settings.load()
    chosen = choose_for(settings, backbone, [model])
    loaded = load(settings, chosen, dtype, quantise)
    async with local_client(settings, loaded) as local:
        yield local
