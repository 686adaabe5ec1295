"""``umbel serve``: the HTTP server, from the command line to its last request."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.choosing import choose_for
from umbel.cli.console import Quantise, Quiet, examples, human_bytes, human_number, say_to_stderr
from umbel.core.collecting import settle
from umbel.core.errors import UsageError
from umbel.core.forms import read_form
from umbel.core.settings import Settings

if TYPE_CHECKING:
    import socket

    from umbel.backbone.backbone import Backbone
    from umbel.backbone.installed import InstalledBackbone
    from umbel.server.assembly import Running

app = typer.Typer(help="Answer over HTTP, every adapter in one batch.")

_NAMED = 8
"""Models that the greeting names at most."""
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@app.command(
    epilog=examples(
        "umbel serve",
        "umbel serve --port 0 --preload sentiment --preload pronounce",
        "umbel serve --quantise int8     (docs/quantised.md tells what it saves and loses)",
        "umbel serve --backbone mood:2   (the backbone that mood:2 was trained with)",
        "umbel serve --host 0.0.0.0   (needs a key: umbel keys create NAME --scope infer)",
    )
)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.", min=0, max=65535)] = 8000,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Its name, or an adapter made for it (mood:2). Default: that of --preload, else the only one that was "
            "pulled; one that was trained here must be named."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), bf16, fp16 or fp32.")] = "auto",
    quantise: Quantise = None,
    preload: Annotated[list[str] | None, typer.Option(help="Adapter to load before the first request.")] = None,
    kv_bytes: Annotated[
        str, typer.Option(help="Most memory for keys and values; rows that make room may take as much again.")
    ] = "2GB",
    adapter_bytes: Annotated[str, typer.Option(help="Most memory for loaded adapters.")] = "1GB",
    max_rows: Annotated[int, typer.Option(help="Rows that run at once.", min=1)] = 32,
    guesses: Annotated[
        int,
        typer.Option(
            help="Tokens that a row may guess ahead in a step of few rows: answers that repeat something come sooner, "
            "and are the same. 0: none.",
            min=0,
            max=7,
        ),
    ] = 5,
    require_keys: Annotated[bool, typer.Option("--require-keys", help="Ask for a key on loopback too.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Another host name that requests may use.")] = None,
    max_body: Annotated[str, typer.Option(help="Largest request.")] = "8MB",
    max_upload: Annotated[str, typer.Option(help="Largest adapter that may be uploaded.")] = "256MB",
    grace: Annotated[float, typer.Option(help="Seconds that running requests get at the end.", min=0)] = 30.0,
    quiet: Quiet = False,
) -> None:
    """Answer over HTTP: OpenAI's routes, and /v1/classify, /v1/score, /v1/tag.

    Every adapter of the home that was made for this backbone answers by its name; it is loaded when it is first asked
    for. Those of other backbones are named at the start: each backbone has a server of its own. SIGTERM finishes what
    runs and exits with 0.
    """
    from umbel.engine.selfcheck import check_rows
    from umbel.registry import Registry
    from umbel.server.assembly import running
    from umbel.server.runner import bind
    from umbel.server.security import check_binding
    from umbel.server.service import Capacity, ServerConfig

    settings = Settings.load()
    capacity = Capacity(max_rows, parse_bytes(kv_bytes), parse_bytes(adapter_bytes), guesses)
    config = ServerConfig(
        host=host,
        allowed_hosts=tuple(allow_host or ()),
        require_keys=require_keys,
        max_body_bytes=parse_bytes(max_body),
        max_upload_bytes=parse_bytes(max_upload),
    )
    found = choose_for(settings, backbone, preload or [])
    with Registry.open(settings) as registry:
        check_binding(host, registry.keys)
        with bind(host, port) as listening:
            say_to_stderr(quiet)(f"loading {found.name} ...")
            loaded = load(settings, found, dtype, quantise)
            report = check_rows(loaded)
            with running(loaded, registry, capacity, config) as parts, _logging(quiet):
                _preload(parts, preload or [])
                _serve(parts, listening, grace, report.summary)


def parse_bytes(text: str) -> int:
    """``512MB``, ``2GB`` or a plain number of bytes; powers of 1000."""
    number = text.strip().lower()
    short = number.removesuffix("b")
    unit = short[-1:] if short[-1:].isalpha() else ""
    try:
        return round(float(short.removesuffix(unit)) * _UNITS[unit])
    except (KeyError, ValueError):
        raise UsageError(f"{text!r} is no size.", code="invalid_size", hint="write 512MB or 2GB") from None


def load(settings: Settings, found: "InstalledBackbone", dtype: str, quantise: str | None = None) -> "Backbone":
    """For answering only: packed weights cannot be trained on."""
    from umbel.backbone.loading import load_backbone
    from umbel.backbone.native import Kernels
    from umbel.cli.known import ensure_backbone

    form = read_form(quantise, settings.quantise)
    ensure_backbone(settings, found)
    kernels = Kernels.wanted(settings)
    loaded = load_backbone(found.folder, dtype=dtype, packed=True, kernels=kernels, name=found.name, quantise=form)
    settle()
    return loaded


@contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """One line for each request, and what goes wrong; nothing of how the libraries are doing."""
    log, handler = logging.getLogger("umbel"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _preload(parts: "Running", models: list[str]) -> None:
    import asyncio

    from umbel.server.assembly import preload

    asyncio.run(preload(parts.service, models))


def _serve(parts: "Running", listening: "socket.socket", grace: float, exactness: str) -> None:
    from umbel.server.app import create_app
    from umbel.server.runner import Runner, run, url_of

    url = url_of(listening)
    greeting = "\n".join([*_facts(parts, url, exactness), f"umbel is ready at {url}"])
    app = create_app(parts.service)
    run(Runner(app, parts.service, parts.thread, grace=grace, on_ready=lambda: _say(greeting)), listening)


def _say(greeting: str) -> None:
    typer.echo(greeting)
    sys.stdout.flush()  # a script waits for the last line


def _facts(parts: "Running", url: str, exactness: str) -> Iterator[str]:
    """The block that a person reads once."""
    from umbel.server.routes.models import running, servable

    service, card = parts.service, parts.service.backbone
    shared = [experiment.name for experiment, _ in running(service.registry, card.fingerprint)]
    here = [adapter.name for adapter in servable(service.registry, card.fingerprint)]
    kv, adapters = human_bytes(service.capacity.kv_bytes), human_bytes(service.capacity.adapter_bytes)
    facts = {
        "backbone": f"{card.name}, {card.weights}, {card.fingerprint.removeprefix('sha256:')[:12]}",
        "memory": f"{kv} keys and values, {adapters} adapters, {service.capacity.max_rows} rows at once",
        "models": _some([card.name, *here, *shared]),
        "not served": _elsewhere([one.name for one in servable(service.registry, None) if one.name not in here]),
        "exactness": exactness,
        "keys": "not needed to ask; needed to change anything" if service.gate.free else "needed",
        "try": _curl(url, card.name),
    }
    return (f"  {name:<11}{fact}" for name, fact in facts.items() if fact is not None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _elsewhere(names: list[str]) -> str | None:
    """Adapters of other backbones, and how to ask them."""
    if not names:
        return None
    count = human_number(len(names), "adapter")
    return f"{count} of other backbones: {_some(names)} (umbel serve --port 0 --backbone {names[0]})"


def _curl(url: str, name: str) -> str:
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
