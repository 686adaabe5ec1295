"""``umbel experiments status`` and ``list``: how it stands, at any moment and as often as one likes."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.cells import number
from umbel.cli.console import (
    Json,
    examples,
    folded,
    human_age,
    human_count,
    print_facts,
    print_json,
    print_table,
)
from umbel.cli.experiments.opened import Experiments, Url, opened
from umbel.cli.words import one_of
from umbel.core.clock import now_ms
from umbel.core.sizes import human_expected

if TYPE_CHECKING:
    from umbel.core.wire.experiments import EffectView, ExperimentReport, ExperimentView

app = typer.Typer()

_CLEAR = "\x1b[2J\x1b[H"
COLUMNS = ("METRIC", "ARM", "OUTCOMES", "MEAN", "DIFFERENCE", "INTERVAL", "VERDICT")


@app.command(
    epilog=examples(
        "umbel experiments status tone",
        "umbel experiments status tone --watch 10",
        "umbel experiments status tone --url http://127.0.0.1:8000 --json",
    )
)
def status(
    name: Annotated[str | None, typer.Argument(help="Without it, all that run.", metavar="NAME")] = None,
    watch: Annotated[float | None, typer.Option(help="Look again every so many seconds.", min=0.1)] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show units, differences and what may be done now. Looking often makes no false winner likelier."""
    with opened(url) as experiments:
        if name is None:
            return _list(experiments, "running", as_json)
        while True:
            report = experiments.report(name)
            _show(report, as_json=as_json, clear=watch is not None)
            if watch is None or report.experiment.status != "running":
                return None
            time.sleep(watch)


@app.command("list", epilog=examples("umbel experiments list", "umbel experiments list --status running --json"))
def list_(
    status: Annotated[
        str | None, typer.Option("--status", help="running, stopped or decided.", metavar="STATUS")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List experiments, newest first."""
    from umbel.registry.records import ExperimentStatus

    wanted = one_of(ExperimentStatus, status, "--status")
    with opened(url) as experiments:
        _list(experiments, wanted, as_json)


def _list(experiments: Experiments, status: str | None, as_json: bool) -> None:
    found = list(experiments.list(status))
    if as_json:
        return print_json(found)
    rows = [
        (one.name, _state(one), _arms(one), one.metrics[0].name, human_age(one.created_at, now_ms())) for one in found
    ]
    empty = "No experiment is like that." if status else "No experiment yet. Begin: umbel experiments create --help"
    return print_table(("NAME", "STATUS", "ARMS", "METRIC", "CREATED"), rows, empty=empty, under=("ARMS",))


def _show(report: "ExperimentReport", *, as_json: bool, clear: bool) -> None:
    if as_json:
        return print_json(report)
    if clear and sys.stdout.isatty():
        typer.echo(_CLEAR, nl=False)
    experiment = report.experiment
    print_facts(
        (
            ("experiment", f"{experiment.name}, {_state(experiment)}{', A/A' if experiment.aa else ''}"),
            ("arms", _arms(experiment)),
            ("units", _units(report)),
            ("split", _split(report)),
        )
    )
    typer.echo()
    if report.effects:
        rows = [row for effects in _by_metric(report) for row in _rows(effects, report)]
        print_table(COLUMNS, rows, empty="", under=("VERDICT",))
        typer.echo()
    typer.echo("\n".join(folded(report.sentence, 0)))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}")
    return None


def _state(experiment: "ExperimentView") -> str:
    if experiment.decision:
        return f"decided: {experiment.decision.get('winner') or 'no winner'}"
    if experiment.status == "running" and experiment.share < 1:
        return f"running for {experiment.share:.3g} of all units"
    return experiment.status


def _arms(experiment: "ExperimentView") -> str:
    return ", ".join(f"{arm.name} {arm.version} ({arm.weight:.3g})" for arm in experiment.arms)


def _units(report: "ExperimentReport") -> str:
    ratio = report.sample_ratio
    return ", ".join(
        f"{arm} {human_count(count)} (expected {human_expected(ratio.expected[arm])})"
        for arm, count in ratio.observed.items()
    )


def _split(report: "ExperimentReport") -> str:
    ratio = report.sample_ratio
    return f"{'BROKEN' if ratio.tripped else 'sound'} (e = {ratio.e_value:.3g}, broken above 100)"


def _by_metric(report: "ExperimentReport") -> "list[list[EffectView]]":
    names = [metric.name for metric in report.experiment.metrics]
    return [[one for one in report.effects if one.metric == name] for name in names]


def _rows(effects: "list[EffectView]", report: "ExperimentReport") -> list[tuple[object, ...]]:
    """The control's row, then one for each arm."""
    control, first = report.experiment.control.name, effects[0]
    rows: list[tuple[object, ...]] = [
        (first.metric, control, human_count(first.n_control), _mean(first.mean_control), None, None, None)
    ]
    for one in effects:
        difference = None if one.difference is None else f"{one.difference:+.3g}"
        interval = None if one.low is None or one.high is None else f"{one.low:+.3g} to {one.high:+.3g}"
        rows.append((one.metric, one.arm, human_count(one.n), _mean(one.mean), difference, interval, _verdict(one)))
    return rows


def _verdict(one: "EffectView") -> str:
    """Two arms without a single error are no lack of data."""
    return "no difference yet" if one.verdict == "too early" and one.difference == 0 else one.verdict


def _mean(value: float | None) -> str | None:
    return None if value is None else number(value)
