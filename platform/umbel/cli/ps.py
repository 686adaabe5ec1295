"""``umbel ps``: what a server holds and does."""

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from umbel.cli.console import (
    Json,
    examples,
    human_bytes,
    human_count,
    human_seconds,
    print_facts,
    print_json,
    print_table,
)
from umbel.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from umbel.core.wire.server import Status

app = typer.Typer(help="Show what a server holds and does.")

_MEANING = {"stop": " (whole)", "length": " (cut at max_tokens)", "cancelled": " (nobody waited any more)"}
"""Of the reasons that rows end for; an error speaks for itself."""


@app.command(epilog=examples("umbel ps", "umbel ps --url http://127.0.0.1:8001 --json"))
def ps(
    url: Annotated[str | None, typer.Option(help="Default: UMBEL_URL, or http://127.0.0.1:8000.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a server holds and does.

    A row is one text that it answers. Those that ended are counted by finish_reason: stop (whole), length (cut at
    max_tokens), cancelled (whoever asked went away) or error.
    """
    from umbel.client import Client

    with Client(url, timeout=10.0) as client:
        try:
            found = client.status()
        except Unavailable as error:
            if error.code == "server_unreachable":
                error.hint = (
                    "is it at another port? `umbel serve` tells its own as it starts: umbel ps --url http://HOST:PORT "
                    f"(or UMBEL_URL); to start one there: umbel serve{_port(client.url)}"
                )
            raise
    if as_json:
        return print_json(found)
    print_facts(
        (
            ("backbone", f"{found.backbone} ({_weights(found)}, {found.fingerprint.removeprefix('sha256:')[:12]})"),
            ("up", human_seconds(found.uptime_seconds) + (", shutting down" if found.draining else "")),
            ("rows", f"{found.running} of {found.max_rows} running, {found.waiting} waiting"),
            ("keys and values", f"{human_bytes(found.kv_bytes_used)} of {human_bytes(found.kv_bytes)}"),
            ("adapters", f"{human_bytes(found.adapter_bytes_used)} of {human_bytes(found.adapter_bytes)}"),
            ("rows ended", _ended(found.finished)),
        )
    )
    rows = [(one.adapter or "(loaded ahead)", one.digest) for one in found.resident]
    typer.echo()
    empty = "No adapter is loaded; each is when it is first asked for."
    return print_table(("RESIDENT", "DIGEST"), rows, empty=empty, under=("DIGEST",))


def _ended(finished: "Mapping[str, int]") -> str:
    """``41: 40 stop (whole), 1 length (at max_tokens)``."""
    if not finished:
        return "none yet"
    parts = (f"{human_count(n)} {why}{_MEANING.get(why, '')}" for why, n in sorted(finished.items()))
    return f"{human_count(sum(finished.values()))} since the start: {', '.join(parts)}"


def _port(url: str) -> str:
    """As a flag, where it is not the one that a server takes by itself."""
    port = urlsplit(url).port
    return "" if port in (None, 8000) else f" --port {port}"


def _weights(found: "Status") -> str:
    return found.dtype if found.quantised is None else f"{found.dtype} with {found.quantised} linears"
