"""``umbel alias``: names that move from version to version, and every move they made."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, human_time, print_json, print_table
from umbel.cli.opened import open_registry
from umbel.core.errors import UsageError
from umbel.core.names import AdapterRef

if TYPE_CHECKING:
    from umbel.registry.records import AliasEvent
    from umbel.registry.registry import Registry

app = typer.Typer(no_args_is_help=True, help="Name a version, such as canary, and see where a name has pointed.")

Name = Annotated[str, typer.Argument(help="As `umbel adapters list` shows it.", metavar="NAME")]
Alias = Annotated[str, typer.Argument(help="champion, canary or any other word.", metavar="ALIAS")]
Expect = Annotated[
    int | None,
    typer.Option(
        "--expect", min=0, help="Number that the alias has now (0: none); if it moved, nothing happens.", metavar="N"
    ),
]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; kept in the history.", metavar="TEXT")]
Evidence = Annotated[
    str | None, typer.Option("--evidence", help="Evaluation or experiment that speaks for it.", metavar="ID")
]


@app.command(
    "set",
    epilog=examples(
        "umbel alias set mood canary 3",
        "umbel alias set mood canary 4 --expect 3 --reason 'fixes sarcasm'",
        "umbel alias set mood@champion canary",
    ),
)
def set_(
    name: Annotated[str, typer.Argument(help="An adapter; or, without NUMBER, name:3 or name@alias.", metavar="NAME")],
    alias: Alias,
    number: Annotated[int | None, typer.Argument(help="Version to point at.", metavar="NUMBER", min=1)] = None,
    expect: Expect = None,
    reason: Reason = None,
    evidence: Evidence = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version. Of two people who move one alias at once, one is told so."""
    ref = name if number is None else f"{AdapterRef.parse(name).name}:{number}"
    if number is not None and name != AdapterRef.parse(name).name:
        raise UsageError(f"{name!r} and {number} both say which version.", hint=f"umbel alias set {name} {alias}")
    with open_registry() as registry:
        event = point(registry, ref, alias, expect=expect, reason=reason, evidence=evidence)
    return print_json(event) if as_json else typer.echo(moved(event))


@app.command(epilog=examples("umbel alias rm mood canary"))
def rm(name: Name, alias: Alias, expect: Expect = None, reason: Reason = None, as_json: Json = False) -> None:
    """Remove an alias. Its history stays, and so does the version."""
    with open_registry() as registry:
        event = registry.aliases.remove(name, alias, expect=expect, reason=reason)
    return print_json(event) if as_json else typer.echo(moved(event))


@app.command(epilog=examples("umbel alias history mood", "umbel alias history mood champion --json"))
def history(
    name: Name,
    alias: Annotated[str | None, typer.Argument(help="Only this one.", metavar="ALIAS")] = None,
    as_json: Json = False,
) -> None:
    """Show every move, oldest first. When, from where to where, by whom (a login or a key) and why."""
    with open_registry() as registry:
        events = registry.aliases.history(name, alias)
    return print_json(events) if as_json else print_history(events)


def point(
    registry: "Registry", ref: str, alias: str, *, expect: int | None, reason: str | None, evidence: str | None
) -> "AliasEvent":
    """Compare and set: what the alias has when we look is what it must have when we move it."""
    if expect is None:
        expect = registry.aliases.get(AdapterRef.parse(ref).name).get(alias, 0)
    return registry.aliases.set(ref, alias, expect=expect, reason=reason, evidence=evidence)


def moved(event: "AliasEvent") -> str:
    """One line on a move."""
    alias = f"{event.name}@{event.alias}"
    if event.origin == event.target:
        return f"{alias} is {event.name}:{event.target} already"
    if event.target is None:
        return f"{alias} is gone; it was {event.name}:{event.origin}"
    was = "new" if event.origin is None else f"was {event.name}:{event.origin}"
    return f"{alias} is {event.name}:{event.target} ({was})"


def print_history(events: "tuple[AliasEvent, ...]") -> None:
    rows = [
        (
            human_time(event.at),
            event.alias,
            event.kind,
            event.origin,
            event.target,
            event.actor,
            event.reason,
            event.evidence,
        )
        for event in events
    ]
    columns = ("AT", "ALIAS", "MOVE", "FROM", "TO", "BY", "REASON", "EVIDENCE")
    empty = "No alias was ever set. Set one: umbel alias set NAME canary 1"
    print_table(columns, rows, empty=empty, under=("REASON", "EVIDENCE"))
