"""``umbel bench``: how fast this machine, or a server, answers a load of a given shape."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.choosing import check_form_of
from umbel.cli.console import (
    Json,
    Quantise,
    examples,
    human_bytes,
    human_seconds,
    print_facts,
    print_json,
    print_table,
)
from umbel.cli.load_shape import Ask, Load, Popularity, Shape, highest, put_load, quantile
from umbel.core.contract import OutputHead
from umbel.core.errors import UmbelError, Unavailable, UsageError
from umbel.core.forms import told as told_form
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.client import AsyncClient

app = typer.Typer(help="Measure speed on this machine.")

PERCENTS = (50, 95, 99)
_WORDS = "A load should look like what people write: names, numbers such as 1789, and words of every length. "
"""Prompts are random draws from its tokens."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What takes the load."""

    where: str
    names: list[str]
    """As they answer: ``mood:1`` for ``mood``."""
    ids: list[int]
    ask: Ask
    memory: Any
    """Awaited, gives bytes by name."""


@app.command(
    epilog=examples(
        "umbel bench",
        "umbel bench pronounce rhyme --popularity zipf",
        "umbel bench pronounce --requests 200 --concurrent 8 --plot bench.png",
        "umbel bench pronounce --url http://127.0.0.1:8000 --json",
        note="Without --url the engine runs in this process, without HTTP. Each adapter is asked once before, so that "
        "loading is not in the figures. Exit code 1: some requests failed.",
    )
)
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Adapters, or the backbone, which is the default.", metavar="NAME"),
    ] = None,
    requests: Annotated[int, typer.Option(help="Of the whole load.", min=1)] = 32,
    concurrent: Annotated[int, typer.Option(help="On their way at once.", min=1)] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Of each request.", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 64,
    popularity: Annotated[
        Popularity, typer.Option(help="How requests fall on the names; zipf: the k-th is asked 1/k as often.")
    ] = Popularity.UNIFORM,
    seed: Annotated[int, typer.Option(help="The same seed asks the same.")] = 0,
    backbone: Annotated[str | None, typer.Option(help="Default: the one that the models were made for.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), bf16, fp16 or fp32.")] = "auto",
    quantise: Quantise = None,
    url: Annotated[str | None, typer.Option(help="Load this server, streaming, instead of an engine here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the distributions as a PNG.", metavar="FILE.png")] = None,
    as_json: Json = False,
) -> None:
    """Measure tokens per second, time to first token and between tokens, and memory, under a load of your shape."""
    check_form_of(url, quantise=quantise, backbone=backbone, dtype=None if dtype == "auto" else dtype)
    shape = Shape(
        requests=requests,
        concurrent=concurrent,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        popularity=popularity,
        seed=seed,
    )
    if plot is not None:
        _check_plot(plot)
    load, memory, asked = asyncio.run(_measure(shape, names or [], (backbone, dtype, quantise, url)))
    found = told(shape, load, memory, asked)
    if plot is not None:
        _plot(load, plot, found)
    print_json(found) if as_json else _print(found)
    bad = [one.error for one in load.seen if one.error is not None]
    if bad:
        raise UmbelError(f"{len(bad)} of {len(load.seen)} requests failed; the first: {bad[0]}", code="requests_failed")


async def _measure(
    shape: Shape, names: list[str], where: tuple[str | None, str, str | None, str | None]
) -> tuple[Load, dict[str, int], Asked]:
    backbone, dtype, quantise, url = where
    opened = _server(url, names, shape) if url is not None else _engine(names, shape, backbone, dtype, quantise)
    async with opened as asked:
        warm = replace(shape, requests=len(asked.names), popularity=Popularity.UNIFORM, seed=shape.seed + 10)
        for one in (await put_load(warm, asked.names, asked.ids, asked.ask)).seen:
            if one.error is not None:  # it would fail each time
                raise one.error
        done = asyncio.Event()
        watching = asyncio.create_task(highest(asked.memory, done, every=0.1))
        load = await put_load(shape, asked.names, asked.ids, asked.ask)
        done.set()
        return load, await watching, asked


@asynccontextmanager
async def _engine(
    names: list[str], shape: Shape, backbone: str | None, dtype: str, quantise: str | None
) -> AsyncIterator[Asked]:
    """An engine on its thread, as a server has it, asked without HTTP."""
    from umbel.cli.choosing import choose_for
    from umbel.cli.loaded_engine import asker, memory
    from umbel.cli.serve import load
    from umbel.registry import Registry
    from umbel.server.assembly import running
    from umbel.server.service import Capacity, ServerConfig

    settings = Settings.load()
    loaded = load(settings, choose_for(settings, backbone, names), dtype, quantise)
    capacity = Capacity(max_rows=min(shape.concurrent, 32), kv_bytes=1_000_000_000, adapter_bytes=1_000_000_000)
    with Registry.open(settings) as registry, running(loaded, registry, capacity, ServerConfig()) as parts:
        targets = [await parts.service.targets.find(name) for name in names or [loaded.name]]
        yield Asked(
            f"engine in this process, {loaded.name}{_form(loaded)}",
            [target.shown for target in targets],
            loaded.tokenizer.encode(_WORDS),
            asker(parts.thread, {target.shown: target for target in targets}, shape.new_tokens),
            memory(parts.thread),
        )
        parts.service.texts.close()


def _form(backbone: "Backbone") -> str:
    return "" if backbone.quantised is None else f" with {told_form(backbone.quantised)}"


@asynccontextmanager
async def _server(url: str, names: list[str], shape: Shape) -> AsyncIterator[Asked]:
    from umbel.client import AsyncClient

    async with AsyncClient(url) as client:
        status = await client.status()
        for name in names:
            head = (await client.model(name)).output_head
            if head not in (None, OutputHead.GENERATE):
                raise UsageError(
                    f"{name} does not generate ({head}), so nothing of it streams.",
                    code="not_streamed",
                    hint="leave out --url to measure it in this process",
                )
        ids = (await client.tokenize(_WORDS)).tokens
        yield Asked(
            f"{url}, {status.backbone}", names or [status.backbone], ids, _streamed(client, shape), _held(client)
        )


def _streamed(client: "AsyncClient", shape: Shape) -> Ask:
    options: dict[str, Any] = {"max_tokens": shape.new_tokens, "ignore_eos": True, "temperature": 0}
    options["stream_options"] = {"include_usage": True}

    async def ask(model: str, prompt: list[int]) -> AsyncIterator[int | None]:
        async for event in client.complete_stream(model, prompt, **options):
            if event.usage is not None:
                yield event.usage.completion_tokens
            elif event.choices[0].text:
                yield None

    return ask


def _held(client: "AsyncClient") -> Any:
    async def read() -> dict[str, int]:
        status = await client.status()
        return {"adapters": status.adapter_bytes_used, "keys and values": status.kv_bytes_used}

    return read


def told(shape: Shape, load: Load, memory: dict[str, int], asked: Asked) -> dict[str, Any]:
    """The figures as JSON has them: milliseconds, bytes, tokens."""
    tokens = sum(one.tokens for one in load.answered)
    each = {name: [one for one in load.answered if one.model == name] for name in dict.fromkeys(asked.names)}
    return {
        "asked": asked.where,
        "requests": len(load.seen),
        "failed": len(load.seen) - len(load.answered),
        "concurrent": shape.concurrent,
        "prompt_tokens": shape.prompt_tokens,
        "new_tokens": shape.new_tokens,
        "popularity": shape.popularity.value,
        "seed": shape.seed,
        "seconds": round(load.seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / load.seconds, 1),
        "requests_per_second": round(len(load.answered) / load.seconds, 2),
        "first_token_ms": _percentiles(load.first),
        "between_tokens_ms": _percentiles(load.gaps),
        "answer_ms": _percentiles([one.arrivals[-1] - one.asked for one in load.answered]),
        "memory_bytes": memory,
        "adapters": {
            name: {"requests": len(seen), "first_token_ms": _percentiles([one.first for one in seen])}
            for name, seen in each.items()
        },
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """None where nothing was seen."""
    return {f"p{p}": round(1e3 * quantile(seconds, p), 1) for p in PERCENTS} if seconds else None


def _print(found: dict[str, Any]) -> None:
    shape = f"{found['requests']} requests, {found['concurrent']} at once, {found['prompt_tokens']} prompt"
    print_facts(
        (
            ("asked", found["asked"]),
            ("load", f"{shape} + {found['new_tokens']} new tokens, {found['popularity']}, seed {found['seed']}"),
            ("failed", found["failed"] or None),
            ("took", human_seconds(found["seconds"])),
            ("speed", f"{found['tokens_per_second']} tokens/s, {found['requests_per_second']} requests/s"),
            ("memory", [f"{human_bytes(size)} {name}" for name, size in found["memory_bytes"].items()]),
        )
    )
    typer.echo()
    parts = (("first token", "first_token_ms"), ("between tokens", "between_tokens_ms"), ("whole answer", "answer_ms"))
    rows = [(name, *_cells(found[key])) for name, key in parts]
    print_table(("MILLISECONDS", *(f"P{p}" for p in PERCENTS)), rows, empty="")
    typer.echo()
    adapters = [(name, one["requests"], *_cells(one["first_token_ms"])) for name, one in found["adapters"].items()]
    print_table(("ADAPTER", "REQUESTS", *(f"FIRST TOKEN P{p}" for p in PERCENTS)), adapters, empty="")


def _cells(percentiles: dict[str, float] | None) -> list[str]:
    return [f"{value:.1f}" for value in percentiles.values()] if percentiles else [""] * len(PERCENTS)


def _check_plot(file: Path) -> None:
    """Before the load is put, which may take long."""
    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.absolute().parent}.", hint="make it, or give another --plot")
    if find_spec("matplotlib") is None:
        raise Unavailable("a PNG needs matplotlib.", code="missing_extra", hint="pip install 'umbel[train]'")


def _plot(load: Load, file: Path, found: dict[str, Any]) -> None:
    from umbel.cli.curves import write_png

    parts = {"first token": load.first, "between tokens": load.gaps}
    curves = {f"{name}: % within": _shares(values) for name, values in parts.items() if values}
    title = f"{found['tokens_per_second']} tokens/s, {found['requests']} requests, {found['concurrent']} at once"
    write_png(curves, title, file, xlabel="ms")


def _shares(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """(ms, percent of all that took no longer)."""
    ordered = sorted(seconds)
    return [(1e3 * value, 100 * (i + 1) / len(ordered)) for i, value in enumerate(ordered)]
