"""``umbel adapters tag``: words to find adapters by."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, print_facts, print_json
from umbel.cli.opened import open_registry
from umbel.cli.words import pairs

app = typer.Typer(no_args_is_help=True, help="Set and remove tags.")

Name = Annotated[str, typer.Argument(help="As `umbel adapters list` shows it.", metavar="NAME")]


@app.command("set", epilog=examples("umbel adapters tag set mood team=search language=en"))
def set_(
    name: Name,
    tag: Annotated[list[str], typer.Argument(help="One or more.", metavar="KEY=VALUE...")],
    as_json: Json = False,
) -> None:
    """Add or replace tags; the others stay."""
    with open_registry() as registry:
        left = registry.tags.set(name, pairs(tag))
    _print(dict(left), as_json)


@app.command(epilog=examples("umbel adapters tag rm mood team"))
def rm(
    name: Name,
    key: Annotated[list[str], typer.Argument(help="One or more.", metavar="KEY...")],
    as_json: Json = False,
) -> None:
    """Remove tags; a key that is not there is no error."""
    with open_registry() as registry:
        left = registry.tags.remove(name, key)
    _print(dict(left), as_json)


def _print(tags: dict[str, str], as_json: bool) -> None:
    if as_json:
        return print_json(tags)
    return print_facts(tuple(tags.items())) if tags else typer.echo("No tag is left.", err=True)
