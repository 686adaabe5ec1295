"""``umbel promote``: give a version the traffic of the bare name."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.alias import Evidence, Expect, Reason, point
from umbel.cli.console import Json, examples, print_json
from umbel.cli.opened import open_registry
from umbel.core.names import CHAMPION

if TYPE_CHECKING:
    from umbel.registry.records import AliasEvent

app = typer.Typer(help="Make a version the one that the bare name answers with.")


@app.command(
    epilog=examples(
        "umbel promote mood:3",
        "umbel promote mood@canary --reason 'won the experiment' --evidence exp-01k9",
        "umbel promote mood:3 --expect 2",
    )
)
def promote(
    version: Annotated[str, typer.Argument(help="name:3 or name@alias.", metavar="NAME:N")],
    expect: Expect = None,
    reason: Reason = None,
    evidence: Evidence = None,
    as_json: Json = False,
) -> None:
    """Make a version the one that the bare name answers with. `umbel rollback` undoes it."""
    with open_registry() as registry:
        event = point(registry, version, CHAMPION, expect=expect, reason=reason, evidence=evidence)
    if as_json:
        return print_json(event)
    return typer.echo(moved(event))


def moved(event: "AliasEvent") -> str:
    """What the bare name answers with now, what it was, and how to undo it."""
    if event.origin == event.target:
        return f"{event.name} answers with {event.name}:{event.target} already"
    was = "" if event.origin is None else f" (was {event.name}:{event.origin}; undo: umbel rollback {event.name})"
    return f"{event.name} now answers with {event.name}:{event.target}{was}"
