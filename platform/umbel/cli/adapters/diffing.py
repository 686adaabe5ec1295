"""``umbel adapters diff``: what differs between two versions, in words and in weights."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.cells import setting
from umbel.cli.console import Json, examples, print_heading, print_json, print_table
from umbel.cli.opened import open_registry
from umbel.core.errors import UsageError

if TYPE_CHECKING:
    from umbel.adapters.difference import WeightChange
    from umbel.registry.records import Change, VersionDiff

app = typer.Typer()

_PARTS = ("config", "contract", "data", "training", "metrics", "files")
_BAR = 30
_DIGEST = 19
"""Characters of a digest that tell two apart."""

_REF = "name, name:3, name@alias or name@sha256:..."


@app.command(
    epilog=examples(
        "umbel adapters diff mood:2 mood:3",
        "umbel adapters diff mood 2 3",
        "umbel adapters diff mood@champion mood@canary",
        "umbel adapters diff mood:2 mood:3 --no-weights --json",
        note="Weight change: the norm of the difference over the norm of BEFORE, layer by layer.",
    )
)
def diff(
    before: Annotated[str, typer.Argument(help=_REF, metavar="BEFORE")],
    after: Annotated[str, typer.Argument(help=f"{_REF}; or a number alone: of the same adapter.", metavar="AFTER")],
    second: Annotated[
        str | None, typer.Argument(help="After a name and a number: another number.", metavar="N")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Compare weights too.")] = True,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions. Config, contract, data, training, metrics, files, weights by layer."""
    before, after = _pair(before, after, second)
    with open_registry() as registry:
        found = registry.versions.diff(before, after)
        changed = _weights(registry, found) if weights else None
    if as_json:
        return print_json({"diff": found, "same_answers": found.same_answers, "weights": changed})
    return _print(found, changed)


def _pair(first: str, then: str, second: str | None) -> tuple[str, str]:
    """``mood 2 3`` and ``mood:2 3`` mean ``mood:2 mood:3``.

    Raises UsageError (``invalid_reference``) for three words of another form.
    """
    name = re.split("[:@]", first)[0]
    if second is None:
        return first, f"{name}:{then}" if then.isdecimal() else then
    if first == name and then.isdecimal() and second.isdecimal():
        return f"{name}:{then}", f"{name}:{second}"
    raise UsageError(
        f"a diff is of two versions, not of {first}, {then} and {second}.",
        code="invalid_reference",
        hint=f"umbel adapters diff {name}:1 {name}:2, or umbel adapters diff {name} 1 2",
    )


def _weights(registry: Any, found: "VersionDiff") -> "WeightChange":
    from umbel.cli.adapters.weights import weight_change

    return weight_change(registry, str(found.before), str(found.after))


def _print(found: "VersionDiff", changed: "WeightChange | None") -> None:
    rows = [(part, change.key, *_sides(change)) for part in _PARTS for change in getattr(found, part)]
    same = "They have one digest and give the same answers." if found.same_answers else "Nothing differs in words."
    versions = (str(found.before), str(found.after))
    print_table(("PART", "KEY", *versions), rows, empty=same, spill=versions)
    if changed is not None and not found.same_answers:
        _print_weights(changed)


def _sides(change: "Change") -> tuple[str, str]:
    return _cell(change.before), _cell(change.after)


def _cell(value: Any) -> str:
    text = "" if value is None else setting(value)
    return text[:_DIGEST] if text.startswith("sha256:") else text


def _print_weights(changed: "WeightChange") -> None:
    if changed.why_not:
        return typer.echo(f"Weights are not compared: {changed.why_not}", err=True)
    if changed.layers and not any(change != 0 for _, change in changed.layers):
        return typer.echo("\nTheir weights are the same.")
    print_heading("Weight change by layer")
    widest = max((change for _, change in changed.layers if change is not None), default=0) or 1
    rows = [
        (place, "from zero" if change is None else f"{change:.4f}", "█" * round(_BAR * (change or 0) / widest))
        for place, change in changed.layers
    ]
    return print_table(("LAYER", "CHANGE", ""), rows, empty="There is no weight.")
