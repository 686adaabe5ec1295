"""``umbel doctor``: can this machine train and serve, and if not, what mends it?

Each condition is a small function in the file of its part: ``machine``, ``home``, ``database``, ``contents`` and
``serving``.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, folded, human_number, print_json
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.cli.doctor.condition import Condition, Result

app = typer.Typer(help="Check that this machine can train and serve.")

_MARKS = {"ok": ("✓", "32"), "warning": ("!", "33"), "failed": ("✗", "31"), "skipped": ("-", "2")}
"""Sign and colour of each state in a terminal."""
_INDENT = 16


@app.command(epilog=examples("umbel doctor", "umbel doctor --fix", "umbel doctor --quick --json"))
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without losing anything.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what reads all bytes or loads a backbone.")] = False,
    host: Annotated[str, typer.Option("--host", help="Address that a server will have.", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Its port.", metavar="PORT")] = 8000,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="The one to try; the smallest by default.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that this machine can train and serve. Ends with 1 if something cannot work; warnings are no failure."""
    from umbel.cli.doctor.condition import examine
    from umbel.cli.doctor.patient import Patient

    patient = Patient(Settings.load(checked=False), host=host, port=port, backbone=backbone)
    results: list[Result] = []
    try:
        for condition in _conditions(quick):
            results.append(examine(condition, patient, mend=fix))
            if not as_json:
                _print(results[-1])
    finally:
        patient.close()
    counts = Counter(result.state.value for result in results)
    if as_json:
        print_json({"ok": not counts["failed"], "counts": counts, "conditions": results})
    else:
        well, warnings = counts["ok"], human_number(counts["warning"], "warning")
        typer.echo(f"{well} of {len(results)} well, {warnings}, {counts['failed']} failed", err=True)
    raise typer.Exit(1 if counts["failed"] else 0)


def _conditions(quick: bool) -> "Iterator[Condition]":
    """Quick ones first, and a part before what stands on it."""
    from umbel.cli.doctor import contents, database, home, machine, serving

    for part in (machine, home, database, contents, serving):
        yield from part.CONDITIONS
    if not quick:
        yield from (*contents.HEAVY, *serving.HEAVY)


def _print(result: "Result") -> None:
    text = f"{result.text} (mended)" if result.mended else result.text
    if not sys.stdout.isatty():
        typer.echo("\t".join((result.state.value, result.name, text, result.fix or "")))
        return
    sign, colour = _MARKS[result.state.value]
    mark = sign if "NO_COLOR" in os.environ else f"\x1b[{colour}m{sign}\x1b[0m"
    lines = folded(text, _INDENT) + (folded(f"fix: {result.fix}", _INDENT) if result.fix else [])
    typer.echo(f"{mark} {result.name:<{_INDENT - 2}}" + f"\n{'':<{_INDENT}}".join(lines))
