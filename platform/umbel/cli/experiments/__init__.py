"""``umbel experiments``: one file per group of commands, put together here."""

import typer

from umbel.cli.experiments import closing, creating, showing

app = typer.Typer(no_args_is_help=True, help="Split live traffic between versions and decide.")

for group in (creating, showing, closing):
    app.add_typer(group.app)
