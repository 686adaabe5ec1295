"""``umbel backbones``: what is in the home."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, print_facts, print_json, print_table
from umbel.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, show and remove backbones of the home.")

Name = Annotated[str, typer.Argument(help="As `umbel backbones list` shows it.", metavar="NAME")]


@app.command("list", epilog=examples("umbel backbones list", "umbel backbones list --json"))
def list_(as_json: Json = False) -> None:
    """List the backbones of the home."""
    from umbel.backbone.installed import installed

    found = installed(Settings.load())
    if as_json:
        return print_json(found)
    rows = [
        (backbone.name, human_bytes(backbone.bytes), backbone.licence or "not stated", backbone.source.source)
        for backbone in found
    ]
    empty = "No backbone yet. Fetch one: umbel pull backbone smollm2-135m-instruct"
    return print_table(("NAME", "SIZE", "LICENCE", "SOURCE"), rows, empty=empty)


@app.command(epilog=examples("umbel backbones show smollm2-135m-instruct"))
def show(name: Name, as_json: Json = False) -> None:
    """Show where a backbone came from."""
    from umbel.backbone.installed import find

    found = find(Settings.load(), name)
    if as_json:
        return print_json(found)
    return print_facts(
        (
            ("name", found.name),
            ("folder", found.folder),
            ("size", human_bytes(found.bytes)),
            ("source", found.source.source),
            ("revision", found.source.revision),
            ("sha256", found.source.sha256),
            ("licence", found.licence or "not stated"),
            ("pulled", found.source.pulled_at),
        )
    )


@app.command(epilog=examples("umbel backbones rm smollm2-135m-instruct"))
def rm(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even while adapters are bound to it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a backbone from the home. Adapters made for it stay, and answer again once it is pulled again."""
    from umbel.backbone.installed import find, remove
    from umbel.cli.known import forget_backbone

    settings = Settings.load()
    forget_backbone(settings, find(settings, name).name, force=force)
    gone = remove(settings, name)
    if as_json:
        return print_json({"removed": gone})
    return typer.echo(f"Removed {gone.name}, {human_bytes(gone.bytes)}")
