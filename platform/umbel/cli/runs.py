"""``umbel runs``: what training runs are doing, what they said and measured."""

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.alive import interrupted, last_heard
from umbel.cli.cells import number, setting
from umbel.cli.console import (
    Json,
    Quiet,
    examples,
    human_age,
    human_seconds,
    human_time,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from umbel.cli.curves import curves, plot, write_csv, write_png
from umbel.cli.opened import open_registry
from umbel.cli.paging import Limit, PageCursor, more
from umbel.cli.train.became import Became, became
from umbel.cli.train.begin import was_begun
from umbel.cli.words import one_of
from umbel.core.clock import now_ms
from umbel.core.errors import NotFound, UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.records import MetricPoint, Page, Run, RunEvent
    from umbel.registry.registry import Registry

app = typer.Typer(no_args_is_help=True, help="Follow, resume and cancel training runs.")

_INTERRUPTED = "interrupted"
"""What `running` in the registry means where nobody works on it any more."""
POLL_SECONDS = 0.5
"""How often `logs -f` looks."""

Which = Annotated[str, typer.Argument(help="A run's id, or an adapter's name for its newest run.", metavar="RUN")]


@app.command("list", epilog=examples("umbel runs list", "umbel runs list --name mood --status failed"))
def list_(
    name: Annotated[str | None, typer.Option("--name", help="Only this adapter's.", metavar="NAME")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="queued, running, interrupted, succeeded, failed or cancelled.", metavar="STATUS"
        ),
    ] = None,
    limit: Limit = 50,
    page: PageCursor = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    with open_registry() as registry:
        found = _listed(registry, name, status, limit, page)
    if as_json:
        return print_json({"items": [_plain(run) for run in found.items], "next": found.next})
    rows = [(run.id, run.name, _status(run), human_age(run.created_at, now_ms()), _took(run)) for run in found.items]
    empty = "No run is like that." if name or status else "No run yet. Start one: umbel train --help"
    print_table(("RUN", "NAME", "STATUS", "CREATED", "TOOK"), rows, empty=empty)
    return more(found.next)


@app.command(
    epilog=examples(
        "umbel runs show mood",
        "umbel runs show run-01k9... --curve loss --curve validation_loss",
        "umbel runs show mood --png curves.png --csv curves.csv",
    )
)
def show(
    run: Which,
    curve: Annotated[
        list[str] | None,
        typer.Option("--curve", help="Metric to draw; may be given again.", metavar="KEY"),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Draw every curve into this file.", metavar="FILE")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write every point into this file.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Show a run. What it was asked, the version that it became and how good that is, and its curves."""
    with open_registry() as registry:
        found = _find(registry, run)
        points, end = registry.runs.points(found.id), became(registry, found.id)
    drawn = curves(points)
    _check_curves(curve or (), drawn)
    if png is not None and drawn:
        write_png(drawn, f"{found.name}  {found.id}", png)
    if csv is not None:
        write_csv(points, csv)
    if as_json:
        return print_json({"run": _plain(found), "became": end, "points": points})
    print_facts(tuple(_facts(found, end)))
    return _print_curves(drawn, curve)


@app.command(epilog=examples("umbel runs logs mood", "umbel runs logs mood -f", "umbel runs logs run-01k9... --json"))
def logs(
    run: Which,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends; steps too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value per line.")] = False,
) -> None:
    """Print what a run said. With -f also what it measures, until it ends; Ctrl-C leaves the run alone."""
    with open_registry() as registry:
        found = _find(registry, run).id
        for line in _following(registry, found, follow=follow):
            typer.echo(json.dumps(line) if as_json else _line(line))
        if follow and _word(registry.runs.get(found)) == _INTERRUPTED:
            typer.echo(f"nobody works on it any more; go on with it: umbel runs resume {found}", err=True)


@app.command(epilog=examples("umbel runs cancel mood", "umbel runs cancel run-01k9..."))
def cancel(run: Which, as_json: Json = False) -> None:
    """Cancel a run. One that waits or was interrupted ends at once; one that works stops at its next step.

    Its checkpoint stays, and umbel runs resume goes on with it.
    """
    settings = Settings.load()
    with open_registry() as registry:
        found = registry.runs.cancel(_find(registry, run).id, gone=lambda run: interrupted(run, settings))
    if as_json:
        return print_json(found)
    if found.status == "cancelled":
        return typer.echo(f"{found.id} ({found.name}) is cancelled")
    return typer.echo(f"{found.id} ({found.name}) stops at its next step; watch it: umbel runs logs {found.id} -f")


@app.command(epilog=examples("umbel runs resume mood", "umbel runs resume run-01k9..."))
def resume(run: Which, quiet: Quiet = False, as_json: Json = False) -> None:
    """Go on with a run that was stopped. From its last checkpoint, as `umbel train --resume` does."""
    from umbel.cli.train.command import train
    from umbel.cli.train.over import refuse_over

    with open_registry() as registry:
        found = _find(registry, run)
        refuse_over(registry, Settings.load(), found)
    train(resume=found.id, quiet=quiet, as_json=as_json)


def _find(registry: "Registry", run: str) -> "Run":
    try:
        return registry.runs.get(run)
    except NotFound:
        newest = registry.runs.list(name=run, limit=1).items
        if not newest:
            near = registry.runs.nearest(run)
            raise NotFound(
                f"there is no run {run!r}, nor one of an adapter of that name.",
                code="run_not_found",
                hint=f"did you mean {near}? umbel runs list" if near else "umbel runs list",
            ) from None
        return newest[0]


def _listed(registry: "Registry", name: str | None, status: str | None, limit: int, cursor: str | None) -> "Page[Run]":
    """The registry keeps ``running`` of a run whose process is gone: which of them are is told here, run by run."""
    from umbel.registry.records import Page, RunStatus

    if status not in (_INTERRUPTED, "running"):
        kept = one_of(RunStatus, status, "--status", _INTERRUPTED)
        return registry.runs.list(name=name, status=kept, limit=limit, cursor=cursor)
    while True:
        found = registry.runs.list(name=name, status=RunStatus.RUNNING, limit=limit, cursor=cursor)
        items = tuple(run for run in found.items if _word(run) == status)
        cursor = found.next
        if items or cursor is None:
            return Page(items, cursor)


def _word(run: "Run") -> str:
    """Its status, the same in tables, filters and JSON."""
    return _INTERRUPTED if interrupted(run, Settings.load()) else str(run.status)


def _plain(run: "Run") -> dict[str, Any]:
    return {**asdict(run), "status": _word(run)}


def _status(run: "Run") -> str:
    if _word(run) == _INTERRUPTED:
        return _INTERRUPTED
    return "running, to be cancelled" if run.status == "running" and run.cancel_requested else run.status


def _took(run: "Run") -> str:
    if run.started_at is None:
        return ""
    until = run.finished_at or (last_heard(run) if interrupted(run, Settings.load()) else now_ms())
    return human_seconds(max(0, until - run.started_at) / 1000)


def _facts(run: "Run", end: Became | None) -> Iterator[tuple[str, object]]:
    stopped = interrupted(run, Settings.load())
    heard = f", last heard {human_age(last_heard(run), now_ms())}; umbel runs resume {run.id}" if stopped else ""
    if run.status in ("failed", "cancelled") and was_begun(Settings.load(), run.id):
        heard = f"; umbel runs resume {run.id}{' once it is mended' if run.status == 'failed' else ''}"
    yield from (("run", run.id), ("name", run.name), ("status", _status(run) + heard), ("error", run.error))
    if end is not None:
        gate = run.params.get("gate")
        yield from (("version", end.version or "none: it was not to be published"), ("judged", end.figure))
        yield "gate", None if end.verdict is None else f"{gate}: {end.verdict}" if gate else end.verdict
    yield from (("worker", run.lease_owner), ("attempt", run.attempt if run.attempt > 1 else None))
    yield "created", f"{human_time(run.created_at)} by {run.created_by}"
    yield "took", _took(run) or None
    yield "seed", run.seed
    yield "asked", _settings(run.params)
    yield "found", _settings(run.summary or {})


def _settings(values: Mapping[str, Any]) -> str | None:
    told = ((key, setting(value)) for key, value in values.items() if value is not None)
    return "; ".join(f"{key} {text}" for key, text in told if text) or None


def _check_curves(wanted: Iterable[str], drawn: Mapping[str, object]) -> None:
    for key in wanted:
        if key not in drawn:
            known = ", ".join(drawn) or "nothing"
            raise UsageError(f"the run has not measured {key!r}.", param="curve", hint=f"it measured {known}")


def _print_curves(drawn: Mapping[str, list[tuple[float, float]]], wanted: list[str] | None) -> None:
    if not drawn:
        return typer.echo("It has measured nothing yet.", err=True)
    print_heading("Measured")
    rows = [(key, len(curve), *map(number, _range([value for _, value in curve]))) for key, curve in drawn.items()]
    print_table(("METRIC", "POINTS", "FIRST", "LAST", "LOWEST", "HIGHEST"), rows, empty="")
    if not sys.stdout.isatty():
        return None
    for key in wanted or [key for key in drawn if "loss" in key or "accuracy" in key]:
        print_heading(f"{key}{_MEANS.get(key, '')}")
        typer.echo("\n".join(_drawn(drawn[key])))
    return None


_MEANS = {"loss": ", of each step as it was", "validation_loss": ", where it is lowest the weights are kept"}
"""Said beside a curve; the progress line smooths the loss."""


def _drawn(curve: "list[tuple[float, float]]") -> list[str]:
    if len(curve) == 1:
        return [f"{number(curve[0][1])} at step {curve[0][0]:.0f}, its only point"]
    return plot(curve, width=min(shutil.get_terminal_size().columns, 100))


def _range(values: list[float]) -> tuple[float, float, float, float]:
    return values[0], values[-1], min(values), max(values)


def _following(registry: "Registry", run: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    """Events in order and, if asked to follow, each step once it is complete, until the run has ended or lies dead."""
    seq, step = 0, -1
    while True:
        found = registry.runs.get(run)  # asked first: what comes after its end is nothing
        ended = found.finished_at is not None or _word(found) == _INTERRUPTED
        for event in registry.runs.events(run, after=seq):
            seq = event.seq
            yield _event(event)
        if follow:
            steps = _steps(registry.runs.points(run, after=step))
            for step, values in steps if ended else steps[:-1]:  # the newest may still grow
                yield {"step": step, **values}
        if ended or not follow:
            return
        time.sleep(POLL_SECONDS)


def _event(event: "RunEvent") -> dict[str, Any]:
    return {"seq": event.seq, "at": event.at, "level": event.level, "message": event.message, "data": event.data}


def _steps(points: "Iterable[MetricPoint]") -> list[tuple[int, dict[str, float | None]]]:
    found: dict[int, dict[str, float | None]] = defaultdict(dict)
    for point in points:
        found[point.step][point.key] = point.value
    return sorted(found.items())


def _line(line: dict[str, Any]) -> str:
    if "step" in line:
        values = (f"{key} {'nan' if value is None else number(value)}" for key, value in line.items() if key != "step")
        return f"step {line['step']:>6}  {'  '.join(values)}"
    data = _settings(line["data"] or {})
    return f"{human_time(line['at'])}  {line['level']:<7}  {line['message']}{f' ({data})' if data else ''}"
