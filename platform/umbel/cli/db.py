"""``umbel db``: the registry's database."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, print_facts, print_json
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import DatabaseStatus

app = typer.Typer(no_args_is_help=True, help="Upgrade, check and back up the registry's database.")


@app.command(epilog=examples("umbel db check", "UMBEL_DATABASE_URL=postgresql://umbel@db/umbel umbel db check"))
def check(as_json: Json = False) -> None:
    """Tell whether the database fits this umbel. Changes nothing; ends with 1 if it does not."""
    from umbel.registry import migrate
    from umbel.registry.database import Database

    database = Database(Settings.load().database_url)
    status = migrate.check(database)
    database.close()
    _print(status, as_json)
    raise typer.Exit(0 if status.ok else 1)


@app.command(epilog=examples("umbel db backup before.db && umbel db upgrade"))
def upgrade(as_json: Json = False) -> None:
    """Bring the database to what this umbel needs. All of it, or nothing."""
    from umbel.registry import migrate
    from umbel.registry.database import Database

    database = Database(Settings.load().database_url)
    status = migrate.upgrade(database)
    database.close()
    _print(status, as_json)


@app.command(epilog=examples("umbel db backup", "umbel db backup /backups/registry-monday.db"))
def backup(
    file: Annotated[Path | None, typer.Argument(help="Where to; in the home by default.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Copy a SQLite registry while others use it. Copy the store's files after it, with any tool."""
    from umbel.core.clock import now_ms
    from umbel.registry import migrate
    from umbel.registry.database import Database

    settings = Settings.load()
    database = Database(settings.database_url)
    target = migrate.backup(database, file or settings.home / "backups" / f"registry-{now_ms()}.db")
    database.close()
    if as_json:
        return print_json({"file": target, "bytes": target.stat().st_size})
    return typer.echo(f"{target}  {human_bytes(target.stat().st_size)}")


def _print(status: "DatabaseStatus", as_json: bool) -> None:
    if as_json:
        return print_json(status)
    return print_facts(
        (
            ("database", status.url),
            ("revision", status.current or "none: it is empty"),
            ("needed", status.head),
            ("state", "up to date" if status.ok else "to be upgraded: umbel db backup, then: umbel db upgrade"),
        )
    )
