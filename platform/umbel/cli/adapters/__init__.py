"""``umbel adapters``: one file per group of commands, put together here."""

import typer

from umbel.cli.console import Json, examples, print_json, print_table
from umbel.cli.opened import open_registry

app = typer.Typer(no_args_is_help=True, help="List, search, show, import, export and retire adapters.")


@app.command("list", epilog=examples("umbel adapters list"))
def list_(as_json: Json = False) -> None:
    """List adapters."""
    with open_registry() as registry:
        page = registry.adapters.list()
    if as_json:
        return print_json(page)
    return print_table(("NAME",), [(adapter.name,) for adapter in page.items], empty="No adapter yet.")
