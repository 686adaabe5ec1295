"""``umbel experiments stop`` and ``decide``: the two ends of an experiment."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.alias import Reason
from umbel.cli.console import Json, examples, print_json
from umbel.cli.experiments.opened import Name, Url, opened

if TYPE_CHECKING:
    from umbel.core.wire.experiments import DecisionView

app = typer.Typer()


@app.command(epilog=examples("umbel experiments stop tone", "umbel experiments stop tone --reason 'too slow'"))
def stop(name: Name, reason: Reason = None, url: Url = None, as_json: Json = False) -> None:
    """Let the control answer from now on. Late outcomes still count, and it can still be decided."""
    with opened(url) as experiments:
        found = experiments.stop(name, reason)
    if as_json:
        return print_json(found)
    return typer.echo(f"{found.name} is stopped; it answers with {found.control.version}")


@app.command(
    epilog=examples(
        "umbel experiments decide tone",
        "umbel experiments decide tone --no-promote",
        "umbel experiments decide tone --force --winner candidate --reason 'same quality, half the cost'",
    )
)
def decide(
    name: Name,
    winner: Annotated[
        str | None, typer.Option(help="Arm that must have won; needed with --force.", metavar="ARM")
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Give the winner the traffic of its bare name.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Decide without a result; needs --winner and --reason.")
    ] = False,
    reason: Reason = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Close it with its winner and promote that version. The experiment is the evidence of the move.

    Exit code 5 where the outcomes carry no decision: nothing is changed then. A broken split cannot be forced.
    """
    from umbel.core.wire.experiments import DecideRequest

    how = DecideRequest(winner=winner, promote=promote, force=force, reason=reason)
    with opened(url) as experiments:
        found = experiments.decide(name, how)
    return print_json(found) if as_json else _tell(found)


def _tell(found: "DecisionView") -> None:
    experiment, moved = found.experiment, found.promoted
    arm = next(arm for arm in experiment.arms if experiment.decision and arm.name == experiment.decision["winner"])
    typer.echo(f"{experiment.name} is decided: {arm.name} ({arm.version}); it answers with that from now on")
    if moved is None:
        return typer.echo(f"  nothing was promoted; to do it: umbel promote {arm.version} --evidence {experiment.id}")
    if moved.origin == moved.target:
        return typer.echo(f"  {moved.name} answers with {moved.name}:{moved.target} already")
    was = "" if moved.origin is None else f" (was {moved.name}:{moved.origin}; undo: umbel rollback {moved.name})"
    return typer.echo(f"  {moved.name} now answers with {moved.name}:{moved.target}{was}")
