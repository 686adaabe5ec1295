"""``umbel data``: check a dataset before training on it."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_count, print_facts, print_json
from umbel.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Check a dataset before training on it.")


@app.callback()
def data() -> None:
    """Check a dataset before training on it."""


@app.command(
    epilog=examples(
        "umbel data check rows.jsonl",
        "umbel data check tweets-sentiment",
        "umbel data check rows.jsonl --test held-out.jsonl --json",
    )
)
def check(
    what: Annotated[str, typer.Argument(help="JSONL file, folder, or dataset of the home.", metavar="DATA")],
    test: Annotated[
        str | None, typer.Option(help="Another file whose texts must not be in it.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every row: form, labels, copies, contradictions, and test rows that training has seen.

    Exits with 2 at the first row that cannot be trained on, and names its line and the form expected.
    """
    from umbel.training.data.check import check_data

    found = check_data(what, Settings.load(), test=test)
    if as_json:
        return print_json(found)
    facts: list[tuple[str, object]] = [("form", found.form)]
    facts += [(split, f"{human_count(count)} rows") for split, count in found.rows.items()]
    facts += [(f"label {label}", human_count(count)) for label, count in found.labels.items()]
    facts += [("characters", f"{human_count(found.median_length)} in the median text, {found.longest:,} at most")]
    facts += [("copies", human_count(found.copies)), ("contradictions", human_count(found.contradictions))]
    facts += [("leaks", f"{human_count(found.leaks)} test rows whose text is in train, too")]
    return print_facts(facts)
