"""``umbel adapters``: one file per group of commands, put together here."""

import typer

from umbel.cli.adapters import diffing, importing, listing, retiring, showing, tagging

app = typer.Typer(no_args_is_help=True, help="List, search, show, import, export and retire adapters.")

for group in (listing, showing, diffing, importing, retiring):
    app.add_typer(group.app)
app.add_typer(tagging.app, name="tag")
