"""``umbel verify``: is every stored version whole?"""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, human_count, print_json, print_table
from umbel.cli.opened import open_registry

app = typer.Typer(help="Check every stored byte against its digest.")


@app.command(epilog=examples("umbel verify", "umbel verify --deep", "umbel verify --deep --json"))
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte; what is wrong goes to quarantine.")] = False,
    as_json: Json = False,
) -> None:
    """Check that every version is whole: rows, aliases and files. Ends with 1 where something is wrong."""
    with open_registry() as registry:
        report = registry.verify(deep=deep)
    if as_json:
        print_json(report)
    else:
        rows = [(problem.code, problem.message) for problem in report.problems]
        print_table(("PROBLEM", "WHAT AND HOW TO HEAL IT"), rows, empty="No problem found.")
        how = "every byte read" if deep else "sizes compared; --deep reads every byte"
        typer.echo(
            f"{human_count(report.versions)} versions, {human_count(report.blobs)} files, "
            f"{human_bytes(report.bytes)}: {how}",
            err=True,
        )
    raise typer.Exit(0 if report.clean else 1)
