"""Figures that came along with a folder: whoever exported it measured them, nobody here has."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from umbel.cli.cells import number
from umbel.core.manifest import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from umbel.registry.records import Version
    from umbel.registry.registry import Registry


def keep_reported(registry: "Registry", version: "Version", folder: Path) -> "Version":
    """The version with the folder's figures, where those are of its very bytes. Others are left out, and told of."""
    reported = read_metrics(folder)
    if reported is None:
        return version
    digest, metrics = reported
    if digest != version.digest:
        typer.echo(f"{METRICS_FILE} is of other bytes ({digest}): its figures are left out", err=True)
        return version
    return registry.versions.set_metrics(str(version.ref), metrics)


def is_reported(registry: "Registry", version: "Version") -> bool:
    """Whether it has figures, and no run and no evaluation of this registry stands behind them."""
    if not version.metrics or version.run is not None:
        return False
    return not registry.evaluations.list(name=version.name, number=version.number)


def figures_fact(registry: "Registry", version: "Version") -> tuple[str, list[str] | None]:
    """``metrics`` where they were measured here, ``reported`` where somebody else says so."""
    figures = [f"{key} {number(value)}" for key, value in version.metrics.items()]
    if is_reported(registry, version):
        return "reported", [*figures, "(by whoever exported it; not measured here)"]
    return "metrics", figures or None
