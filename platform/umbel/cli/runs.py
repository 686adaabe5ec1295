"""``umbel runs``: what training runs are doing, what they said and measured."""

import typer

from umbel.cli.console import Json, examples, human_time, print_json, print_table
from umbel.cli.opened import open_registry

app = typer.Typer(no_args_is_help=True, help="Follow and cancel training runs.")


@app.command("list", epilog=examples("umbel runs list"))
def list_(as_json: Json = False) -> None:
    """List runs, newest first."""
    with open_registry() as registry:
        page = registry.runs.list()
    if as_json:
        return print_json(page)
    rows = [(run.id, run.name, run.status, human_time(run.created_at)) for run in page.items]
    return print_table(("RUN", "NAME", "STATUS", "CREATED"), rows, empty="No run yet. Start one: umbel train --help")
