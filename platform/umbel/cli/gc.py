"""``umbel gc``: free what no version needs any more."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, human_count, print_facts, print_json
from umbel.cli.opened import open_registry

app = typer.Typer(help="Free what no version needs any more.")

_HOUR_MS = 3_600_000


@app.command(epilog=examples("umbel gc", "umbel gc --yes", "umbel gc --yes --grace-hours 0"))
def gc(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it; without, only tell.")] = False,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="Leave alone what is younger.", metavar="HOURS")
    ] = 24.0,
    as_json: Json = False,
) -> None:
    """Tell what no version needs any more and, with --yes, remove it. Safe while others publish."""
    with open_registry() as registry:
        report = registry.gc(dry_run=not yes, grace_ms=int(grace_hours * _HOUR_MS))
    if as_json:
        return print_json(report)
    print_facts(
        (
            ("files", f"{human_count(len(report.blobs))}, {human_bytes(report.bytes)}"),
            ("dead publishes", len(report.staging)),
            ("cached folders", len(report.cached)),
            ("warnings", list(report.warnings)),
        )
    )
    found = report.blobs or report.staging or report.cached
    if not found:
        return typer.echo("Nothing to remove.", err=True)
    return typer.echo("Removed." if yes else "Nothing was removed yet: umbel gc --yes", err=True)
