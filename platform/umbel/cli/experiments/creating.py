"""``umbel experiments create``: versions that share a name's traffic from now on."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, print_json
from umbel.cli.experiments.opened import Name, Url, opened
from umbel.cli.words import commas
from umbel.core.errors import UsageError

if TYPE_CHECKING:
    from umbel.core.wire.experiments import ArmSpec, ExperimentView, MetricSpec

app = typer.Typer()

_DIRECTIONS = {"": None, "higher": True, "lower": False}


@app.command(
    epilog=examples(
        "umbel experiments create tone --control mood:1 --arm mood:2 --metric thumbs",
        "umbel experiments create tone --control mood:1 --arm terse=mood:2 --arm warm=mood:3 --metric complaints:lower",
        "umbel experiments create tone --control mood:1 --arm mood:2 --metric thumbs --weights 0.9,0.1 --share 0.2",
        "umbel experiments create check --control mood:1 --aa --metric thumbs",
    )
)
def create(
    name: Annotated[str, typer.Argument(help="What requests then say as `model`.", metavar="NAME")],
    control: Annotated[str, typer.Option("--control", help="Version that answers today.", metavar="NAME:N")],
    metric: Annotated[
        list[str],
        typer.Option(
            "--metric",
            help="What feedback measures; NAME:lower where less is better. The first decides.",
            metavar="NAME",
        ),
    ],
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Version to try; may be given again. ARM= names the arm.", metavar="[ARM=]NAME:N"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of control and arms, summing to 1. Default: equal.", metavar="W,W...")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Part of the units that take part; raise it with `ramp`.", min=0, max=1)
    ] = 1.0,
    higher_is_better: Annotated[
        bool, typer.Option("--higher-is-better/--lower-is-better", help="Of the first metric.")
    ] = True,
    salt: Annotated[str, typer.Option(help="Of the split; auto makes a random one.")] = "auto",
    aa: Annotated[
        bool, typer.Option("--aa", help="One version in both arms: tests the set-up. Try this first.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Chance of a false winner, over all looks.", min=0, max=0.5)] = 0.05,
    horizon: Annotated[int, typer.Option(help="Units of all arms at which intervals are tightest.", min=100)] = 5000,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Split the traffic of NAME between versions. Each unit (a user) keeps its arm; versions are pinned."""
    from umbel.core.wire.experiments import ExperimentSpec

    spec = ExperimentSpec(
        name=name,
        arms=_arms(control, arm or ([control] if aa else []), weights),
        metrics=_metrics(metric, higher_is_better),
        share=share,
        salt=None if salt == "auto" else salt,
        aa=aa,
        alpha=alpha,
        horizon=horizon,
    )
    with opened(url) as experiments:
        made = experiments.create(spec)
    return print_json(made) if as_json else _tell(made)


@app.command(epilog=examples("umbel experiments ramp tone --share 0.5"))
def ramp(
    name: Name,
    share: Annotated[float, typer.Option(help="Part of the units that take part, 0 to 1.", min=0, max=1)],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Open an experiment to more units (or fewer). Nobody who is in changes arm."""
    with opened(url) as experiments:
        found = experiments.ramp(name, share)
    return print_json(found) if as_json else typer.echo(f"{found.name} is open to {found.share:.3g} of all units")


def _arms(control: str, others: list[str], weights: str | None) -> "list[ArmSpec]":
    from umbel.core.wire.experiments import ArmSpec

    if not others:
        raise UsageError("there is no arm beside the control.", param="arm", hint="--arm NAME:N; or --aa")
    named = [("control", control), *(_named(text, place, len(others)) for place, text in enumerate(others, 1))]
    given = [_weight(text) for text in commas([weights])] if weights else [None] * len(named)
    if len(given) != len(named):
        raise UsageError(
            f"{len(named)} arms but {len(given)} weights.",
            code="invalid_weights",
            param="weights",
            hint="one for the control, then one for each --arm",
        )
    return [ArmSpec(name=name, model=model, weight=one) for (name, model), one in zip(named, given, strict=True)]


def _named(text: str, place: int, count: int) -> tuple[str, str]:
    name, equals, model = text.rpartition("=")
    return (name, model) if equals else ("candidate" if count == 1 else f"candidate-{place}", text)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no weight.", code="invalid_weights", param="weights", hint="--weights 0.9,0.1"
        ) from None


def _metrics(given: list[str], higher: bool) -> "list[MetricSpec]":
    from umbel.core.wire.experiments import MetricSpec

    found = []
    for place, text in enumerate(given):
        name, _, direction = text.partition(":")
        if direction not in _DIRECTIONS:
            raise UsageError(f"{text!r} is no metric.", param="metric", hint=f"{name}:lower or {name}:higher")
        told = _DIRECTIONS[direction]
        default = higher if place == 0 else True
        found.append(MetricSpec(name=name, higher_is_better=default if told is None else told))
    return found


def _tell(made: "ExperimentView") -> None:
    arms = ", ".join(f"{arm.name} {arm.version} ({arm.weight:.3g})" for arm in made.arms)
    part = "" if made.share == 1 else f", for {made.share:.3g} of all units"
    typer.echo(f"{made.name} runs: {arms}{part}")
    typer.echo(f'  ask it     "model": "{made.name}", with the header X-Experiment-Unit: a user\'s id')
    typer.echo(f'  tell it    POST /v1/feedback {{"request_id": ..., "metric": "{made.metrics[0].name}", "value": 1}}')
    typer.echo(f"  look       umbel experiments status {made.name}")
