"""Options and the last line of lists that come in pages."""

import shlex
import sys
from typing import Annotated

import typer

Limit = Annotated[int, typer.Option("--limit", "-n", help="Most rows, up to 1000.", metavar="N")]
PageCursor = Annotated[str | None, typer.Option("--page", help="Where the page before ended.", metavar="CURSOR")]


def more(cursor: str | None) -> None:
    """Tells the command that shows the next page, where there is one: as it was typed, with the cursor."""
    if cursor is None:
        return
    typed = sys.argv[1:]
    if "--page" in typed:
        del typed[typed.index("--page") : typed.index("--page") + 2]
    typer.echo(f"More: {shlex.join(['umbel', *typed, '--page', cursor])}", err=True)
