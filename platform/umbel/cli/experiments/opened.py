"""Experiments of the home's registry, or of a running server: the same methods either way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from umbel.cli.opened import open_registry

if TYPE_CHECKING:
    from umbel.core.wire.experiments import (
        DecideRequest,
        DecisionView,
        ExperimentReport,
        ExperimentSpec,
        ExperimentView,
    )

Name = Annotated[str, typer.Argument(help="As `umbel experiments list` shows it.", metavar="NAME")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Ask this server instead of the home's registry; UMBEL_API_KEY is sent.", metavar="URL"),
]


class Experiments(Protocol):
    def create(self, spec: "ExperimentSpec") -> "ExperimentView": ...

    def list(self, status: str | None = None) -> "Iterator[ExperimentView]": ...

    def report(self, name: str) -> "ExperimentReport": ...

    def ramp(self, name: str, share: float) -> "ExperimentView": ...

    def stop(self, name: str, reason: str | None = None) -> "ExperimentView": ...

    def decide(self, name: str, how: "DecideRequest") -> "DecisionView": ...


@contextmanager
def opened(url: str | None) -> Iterator[Experiments]:
    if url is not None:
        from umbel.client import Client

        with Client(url, timeout=60.0) as client:
            yield client.experiments
        return
    from umbel.experiments.live import Live

    with open_registry() as registry:
        yield Live(registry)
