"""``umbel worker``: trains what waits in the queue, one run after the other."""

import threading
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Quiet, examples, say_to_stderr
from umbel.cli.opened import open_registry
from umbel.cli.train.lease import holding
from umbel.cli.train.lease import owner as this_process
from umbel.core.errors import Interrupted, UmbelError

if TYPE_CHECKING:
    from umbel.registry.records import Run
    from umbel.registry.registry import Registry

app = typer.Typer(help="Run training jobs that wait in the queue.")


@app.command(
    epilog=examples(
        "umbel worker",
        "umbel worker --once     (what waits now, then exit)",
        "umbel train mood.toml --queue",
    )
)
def worker(
    once: Annotated[bool, typer.Option("--once", help="Exit when nothing waits.")] = False,
    poll: Annotated[float, typer.Option(help="Seconds between two looks at an empty queue.", min=0.1)] = 2.0,
    quiet: Quiet = False,
) -> None:
    """Run training jobs that wait in the queue.

    Several workers share one registry; each run is leased by one of them. SIGTERM saves the run at hand, and the next
    worker goes on from there with the same bytes. A worker that dies is noticed by its silence.
    """
    owner = this_process()
    say = say_to_stderr(quiet)
    say(f"worker {owner} waits for runs")
    idle = threading.Event()
    with open_registry() as registry:
        while True:
            run = registry.runs.lease(owner)
            if run is not None:
                say(f"{run.id} ({run.name}), attempt {run.attempt}")
                _work(registry, run, quiet=quiet)
            elif once:
                return
            else:
                idle.wait(poll)


def _work(registry: "Registry", run: "Run", *, quiet: bool) -> None:
    """A run that fails is told so; only an interruption ends the worker, and leaves the run to others."""
    from umbel.cli.train.command import train

    try:
        with holding(registry, [run.id], leased=run.id):
            train(resume=run.id, quiet=quiet)
    except Interrupted:
        raise
    except UmbelError as error:
        if error.code == "run_taken":
            return say_to_stderr(quiet)(f"{run.id} left to others: {error}")
        if registry.runs.get(run.id).finished_at is None:
            registry.finish(run.id, status="failed", error=str(error))
        say_to_stderr(quiet)(f"{run.id} failed: {error}")
