"""``umbel datasets``: what is in the home."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, human_count, print_facts, print_json, print_table
from umbel.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, show and remove datasets of the home.")

Name = Annotated[str, typer.Argument(help="As `umbel datasets list` shows it.", metavar="NAME")]


@app.command("list", epilog=examples("umbel datasets list", "umbel datasets list --json"))
def list_(as_json: Json = False) -> None:
    """List the datasets of the home."""
    from umbel.training.data.installed import installed

    found = installed(Settings.load())
    if as_json:
        return print_json(found)
    rows = [
        (
            dataset.name,
            dataset.info.output_head,
            human_count(sum(dataset.info.rows.values())),
            human_bytes(dataset.bytes),
            dataset.info.licence or "not stated",
        )
        for dataset in found
    ]
    empty = "No dataset yet. Fetch one: umbel pull dataset tweets-sentiment"
    return print_table(("NAME", "OUTPUT HEAD", "ROWS", "SIZE", "LICENCE"), rows, empty=empty)


@app.command(epilog=examples("umbel datasets show pronounce"))
def show(name: Name, as_json: Json = False) -> None:
    """Show where a dataset came from and what was decided about it."""
    from umbel.training.data.installed import find

    found = find(Settings.load(), name)
    if as_json:
        return print_json(found)
    info = found.info
    return print_facts(
        (
            ("name", found.name),
            ("folder", found.folder),
            ("output head", info.output_head),
            ("metric", info.metric),
            ("labels", ", ".join(info.labels) or None),
            *((split, f"{human_count(count)} rows") for split, count in info.rows.items()),
            ("source", info.source),
            ("licence", info.licence or "not stated"),
            ("digest", info.digest),
            ("notes", info.notes),
        )
    )


@app.command(epilog=examples("umbel datasets rm drug-reviews"))
def rm(name: Name, as_json: Json = False) -> None:
    """Remove a dataset from the home. Versions trained on it keep its digest."""
    from umbel.cli.known import forget_dataset
    from umbel.training.data.installed import remove

    settings = Settings.load()
    gone = remove(settings, name)
    forget_dataset(settings, name)
    if as_json:
        return print_json({"removed": gone})
    return typer.echo(f"Removed {gone.name}, {human_bytes(gone.bytes)}")
