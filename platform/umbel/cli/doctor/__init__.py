"""``umbel doctor``: can this machine train and serve, and if not, what mends it?"""

import sys

import typer

from umbel.cli.console import examples

app = typer.Typer(help="Check that this machine can train and serve.")


@app.command(epilog=examples("umbel doctor"))
def doctor() -> None:
    """Check that this machine can train and serve."""
    typer.echo(f"Python {sys.version.split()[0]}")
