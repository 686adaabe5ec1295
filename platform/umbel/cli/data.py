"""``umbel data check``: what a training would meet in its data."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, human_count, print_facts, print_heading, print_json, print_table
from umbel.core.errors import DataError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.training.data.check import DataReport

app = typer.Typer(help="Check a dataset before training on it.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Check a dataset before training on it."""


@app.command(
    epilog=examples(
        "umbel data check tweets-sentiment --task classify",
        "umbel data check rows.jsonl --task generate --max-length 256",
        "umbel data check folder/ --task classify --labels spam,ham --json",
    )
)
def check(
    source: Annotated[str, typer.Argument(help="JSONL file, folder, or dataset of the home.", metavar="DATA")],
    task: Annotated[str, typer.Option(help="Output head: generate, classify, regress, tag or embed.")],
    labels: Annotated[str | None, typer.Option(help="In order, with commas; default is what the data hold.")] = None,
    template: Annotated[str, typer.Option(help="What a text is put into.")] = "{text}",
    max_length: Annotated[int, typer.Option(help="Most tokens of one input.", min=1)] = 512,
    backbone: Annotated[str | None, typer.Option(help="Needed only where there are several.")] = None,
    as_json: Json = False,
) -> None:
    """Check a dataset before training on it.

    Tells lengths, truncation, duplicates, leakage between splits, label balance and rows without supervision, as
    training would see them. Exit code 2 where training would be refused.
    """
    from umbel.cli.eval import open_backbone
    from umbel.training.data.check import check_data
    from umbel.training.task import Task

    settings = Settings.load()
    asked = Task(
        name="check",
        data=source,
        task=task,
        labels=tuple(labels.split(",")) if labels else (),
        template=template,
        max_length=max_length,
    )
    report = check_data(asked, open_backbone(settings, backbone), settings)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.trainable:
        worst = next(finding for finding in report.findings if finding.level == "error")
        raise DataError(worst.what, code="untrainable_data", hint=worst.fix)


def _print(report: "DataReport") -> None:
    print_facts([("data", report.name), ("digest", report.digest), ("labels", ", ".join(report.labels) or None)])
    print_heading("Splits")
    print_table(
        ["split", "rows", "tokens", "median", "p95", "longest", "cut", "left out", "copies", "also in train"],
        [
            [
                name, human_count(s.rows), human_count(s.tokens), s.median, s.p95, s.longest, s.truncated, s.left_out,
                s.duplicates, report.leaks.get(name, ""),
            ]
            for name, s in report.splits.items()
        ],
        empty="no rows",
    )  # fmt: skip
    if report.labels:
        print_heading("Labels")
        print_table(
            ["label", *report.splits],
            [[label, *(s.balance.get(label, 0) for s in report.splits.values())] for label in report.labels],
            empty="no labels",
        )
    print_heading("Findings")
    for finding in report.findings:
        typer.echo(f"  {finding.level}: {finding.what} ({finding.fix})")
    if not report.findings:
        typer.echo("  nothing to mend")
