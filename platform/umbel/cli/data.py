"""``umbel data``: check a dataset before training on it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.console import (
    Json,
    examples,
    human_count,
    human_number,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from umbel.cli.eval import LabelColumn, TextColumn
from umbel.core.errors import DataError, UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.training.data.trial import SplitReport, Trial

app = typer.Typer(no_args_is_help=True, help="Check a dataset before training on it.")


@app.callback()
def data() -> None:
    """Check a dataset before training on it."""


@app.command(
    epilog=examples(
        "umbel data check rows.jsonl",
        "umbel data check tweets-sentiment",
        "umbel data check reviews.csv --text-column review --label-column stars",
        "umbel data check rows.jsonl --test held-out.jsonl --json",
        "umbel data check tweets-sentiment --task classify --max-length 96",
    )
)
def check(
    what: Annotated[str, typer.Argument(help="JSONL or CSV file, folder, or dataset of the home.", metavar="DATA")],
    test: Annotated[
        str | None, typer.Option(help="Held-out file, whose texts must not be in DATA.", metavar="FILE")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Output head: look at tokens, too, as its training would.")] = None,
    labels: Annotated[str | None, typer.Option(help="In order, with commas; default is what the data hold.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    template: Annotated[str | None, typer.Option(help="What a text is put into; {text}.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of one input; 512.", min=1)] = None,
    backbone: Annotated[str | None, typer.Option(help="Needed only where there are several.")] = None,
    as_json: Json = False,
) -> None:
    """Check every row before training on it.

    Form, labels, and rows of train whose text came before: with the same answer (copies) or another one
    (contradictions). Leaks are held-out rows whose text is in train. Case, punctuation, links and @names do not count.

    With --task also what training would meet: token lengths, rows that are cut or do not fit, labels too rare to
    learn, two beginnings, rows with nothing to learn. Exits with 2 at the first row that cannot be trained on, and
    names its line and the form expected.
    """
    from umbel.training.data.check import check_data
    from umbel.training.data.records import Columns

    of_training = {"labels": labels, "template": template, "max_length": max_length}
    if task is not None:
        options: dict[str, Any] = {key: value for key, value in of_training.items() if value is not None}
        if labels is not None:
            options["labels"] = tuple(labels.split(","))
        options |= {"text_column": text_column, "label_column": label_column}
        return _try(what, task, test, options, backbone, as_json=as_json)
    _refuse_without_task(of_training | {"backbone": backbone})
    found = check_data(what, Settings.load(), test=test, columns=Columns(text_column, label_column))
    if as_json:
        return print_json(found)
    facts: list[tuple[str, object]] = [("form", found.form)]
    facts += [(split, f"{human_count(count)} rows") for split, count in found.rows.items()]
    facts += [(f"label {label}", human_count(count)) for label, count in found.labels.items()]
    facts += [("characters", f"{human_count(found.median_length)} in the median text, {found.longest:,} at most")]
    for name, count, other in (
        ("copies", found.copies, "the same"),
        ("contradictions", found.contradictions, "another"),
    ):
        facts += [(name, f"{human_number(count, 'training row')} whose text came before, with {other} answer")]
    facts += [("leaks", _leaks(found.leaks))]
    facts += [("warning", each) for each in found.warnings]
    return print_facts(facts)


def _leaks(found: int | None) -> str:
    if found is None:
        return "not looked for: there is no test split (--test FILE; a training keeps rows back, copies together)"
    return f"{human_number(found, 'test row')} whose text is in train, too"


def _refuse_without_task(options: Mapping[str, object]) -> None:
    """What training would meet is looked at for one kind of task."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        flag = f"--{given.replace('_', '-')}"
        raise UsageError(f"{flag} says how a task is trained.", param=given, hint=f"add --task, or leave {flag} out")


def _try(
    what: str, task: str, test: str | None, options: dict[str, Any], backbone: str | None, *, as_json: bool
) -> None:
    from umbel.cli.choosing import choose_backbone
    from umbel.cli.serve import load
    from umbel.training.data.source import look_at
    from umbel.training.data.trial import try_data
    from umbel.training.task import Task

    settings = Settings.load()
    asked = Task(name="check", data=what, task=task, test=test, **options)
    look_at(asked, settings)  # as a training does, with its errors, before a backbone is loaded
    report = try_data(asked, load(settings, choose_backbone(settings, backbone), "auto"), settings)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.trainable:
        worst = next(finding for finding in report.findings if finding.level == "error")
        raise DataError(worst.what, code="untrainable_data", hint=worst.fix)


def _counts(split: "SplitReport") -> Iterator[str]:
    counts = (split.rows, split.tokens, split.median, split.p95, split.longest, split.truncated, split.left_out)
    return map(human_count, (*counts, split.copies))


def _print(report: "Trial") -> None:
    print_facts([("data", report.name), ("digest", report.digest), ("labels", ", ".join(report.labels) or None)])
    print_heading("Splits")
    print_table(
        ["split", "rows", "tokens", "p50", "p95", "max", "cut", "left out", "copies", "leaks"],
        [
            [name, *_counts(s), human_count(report.leaks[name]) if name in report.leaks else ""]
            for name, s in report.splits.items()
        ],
        empty="no rows",
    )
    if report.labels:
        print_heading("Labels")
        print_table(
            ["label", *report.splits],
            [
                [label, *(human_count(s.balance.get(label, 0)) for s in report.splits.values())]
                for label in report.labels
            ],
            empty="no labels",
        )
    print_heading("Findings")
    for finding in report.findings:
        typer.echo(f"  {finding.level}: {finding.what} ({finding.fix})")
    if not report.findings:
        typer.echo("  nothing to mend")
