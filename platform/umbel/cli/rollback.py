"""``umbel rollback``: point an alias back at the version it had before."""

from typing import Annotated

import typer

from umbel.cli.alias import Evidence, Expect, Reason
from umbel.cli.console import Json, examples, print_json
from umbel.cli.opened import open_registry
from umbel.core.names import CHAMPION

app = typer.Typer(help="Undo the last promote.")


@app.command(
    epilog=examples(
        "umbel rollback mood", "umbel rollback mood --reason 'wrong on emoji'", "umbel rollback mood -a canary"
    )
)
def rollback(
    name: Annotated[str, typer.Argument(help="As `umbel adapters list` shows it.", metavar="NAME")],
    alias: Annotated[str, typer.Option("--alias", "-a", help="Which alias.", metavar="ALIAS")] = CHAMPION,
    expect: Expect = None,
    reason: Reason = None,
    evidence: Evidence = None,
    as_json: Json = False,
) -> None:
    """Undo the last promote, at once. Twice goes back twice; retired versions are passed over."""
    with open_registry() as registry:
        if expect is None:
            expect = registry.aliases.get(name).get(alias, 0)
        event = registry.aliases.rollback(name, alias, expect=expect, reason=reason, evidence=evidence)
    if as_json:
        return print_json(event)
    was = f"was {name}:{event.origin}" if event.origin is not None else "was removed"
    who = name if alias == CHAMPION else f"{name}@{alias}"
    return typer.echo(f"{who} answers with {name}:{event.target} again ({was})")
