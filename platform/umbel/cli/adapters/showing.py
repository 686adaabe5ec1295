"""``umbel adapters show`` and ``card``: an adapter with its versions, or one version with its lineage."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.adapters.reported import figures_fact, is_reported
from umbel.cli.alias import print_history
from umbel.cli.cells import metrics, setting, tags
from umbel.cli.console import (
    Json,
    examples,
    human_age,
    human_bytes,
    human_count,
    human_time,
    print_facts,
    print_heading,
    print_json,
    print_markdown,
    print_table,
)
from umbel.cli.opened import open_registry
from umbel.core.clock import now_ms
from umbel.core.errors import NotFound
from umbel.core.forms import told
from umbel.core.names import AdapterRef

if TYPE_CHECKING:
    from umbel.core.protocols import VersionRef
    from umbel.registry.records import Adapter, AliasEvent, Page, Version
    from umbel.registry.registry import Registry

app = typer.Typer()

Ref = Annotated[str, typer.Argument(help="name, name:3, name@alias or name@sha256:...", metavar="NAME[:N]")]

_EMPTY: tuple[object, ...] = (None, "", False, {}, [], ())
_VERSIONS = 20
"""Rows of the table of versions; --json has as many."""


@app.command(
    epilog=examples("umbel adapters show mood", "umbel adapters show mood:3 --card", "umbel adapters show mood@canary")
)
def show(
    ref: Ref,
    card: Annotated[bool, typer.Option("--card", help="The card too, at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Show an adapter, or all about one version.

    An adapter is shown with its versions and the moves of its aliases; a version with state, metrics, config,
    contract, lineage, data and files. Either has a card (--card), which --json always holds.
    """
    parsed = AdapterRef.parse(ref)
    with open_registry() as registry:
        if str(parsed) == parsed.name:
            return _show_adapter(registry, ref, as_json, card=card)
        return _show_version(registry, ref, as_json, card=card)


@app.command(epilog=examples("umbel adapters card mood", "umbel adapters card mood:3 > README.md"))
def card(ref: Ref) -> None:
    """Print the card, the README.md that travels with it."""
    with open_registry() as registry:
        version = registry.versions.get(ref)
    if version.card is None:
        raise NotFound(f"{version.ref} has no card.", code="card_not_found", hint=f"umbel adapters show {version.ref}")
    print_markdown(version.card)


def _show_adapter(registry: "Registry", name: str, as_json: bool, *, card: bool) -> None:
    adapter = registry.adapters.get(name)
    versions = registry.versions.list(name, limit=_VERSIONS)
    history = registry.aliases.history(name)
    if as_json:
        return print_json({"adapter": adapter, "versions": versions.items, "history": history})
    print_facts(
        (
            ("name", adapter.name),
            ("description", adapter.description or None),
            ("backbone", _backbone(registry, adapter.backbone)),
            ("tags", tags(adapter.tags) or None),
            ("created", f"{human_time(adapter.created_at)} by {adapter.created_by}"),
        )
    )
    reported = {version.number for version in versions.items if is_reported(registry, version)}
    _print_versions(adapter, versions, reported)
    _print_moves(history)
    return None if adapter.shown is None else _print_card(adapter.shown, name, f"Card of {adapter.shown.ref}", card)


def _print_card(version: "Version", ref: str, heading: str, wanted: bool) -> None:
    """Or which command shows it: a card is longer than a screen."""
    if version.card is None:
        return typer.echo(f"\n{version.ref} has no card.", err=True) if wanted else None
    if not wanted:
        return typer.echo(f"\nIts card: umbel adapters show {ref} --card", err=True)
    print_heading(heading)
    return print_markdown(version.card)


def _print_versions(adapter: "Adapter", versions: "Page[Version]", reported: set[int]) -> None:
    print_heading("Versions")
    rows = [
        (
            version.number,
            version.state,
            " ".join(version.aliases),
            version.output_head,
            version.method,
            human_bytes(version.bytes),
            metrics(version.metrics) + (" (reported)" if version.number in reported else ""),
            human_age(version.created_at, now_ms()),
        )
        for version in versions.items
    ]
    columns = ("VERSION", "STATE", "ALIASES", "OUTPUT HEAD", "METHOD", "SIZE", "METRICS", "CREATED")
    print_table(columns, rows, empty="No version is left.", under=("METRICS",))
    if versions.next:
        typer.echo(f"{len(rows)} newest of {adapter.last_number}", err=True)


def _show_version(registry: "Registry", ref: str, as_json: bool, *, card: bool) -> None:
    version = registry.versions.get(ref)
    lineage = _lineage(registry, version)
    moves = [
        event for event in registry.aliases.history(version.name) if version.number in (event.origin, event.target)
    ]
    if as_json:
        reported = is_reported(registry, version)
        return print_json({"version": version, "lineage": lineage, "history": moves, "reported": reported})
    print_facts(
        (
            ("version", version.ref),
            ("description", version.contract.description or None),
            *_standing(registry, version),
            *_what(version),
            *_origin(registry, version, lineage),
        )
    )
    print_heading("Files")
    rows = [(file.path, human_bytes(file.bytes), file.digest) for file in version.files]
    print_table(("PATH", "SIZE", "DIGEST"), rows, empty="None.", under=("DIGEST",))
    _print_moves(moves)
    return _print_card(version, str(version.ref), "Card", card)


def _what(version: "Version") -> Iterable[tuple[str, object]]:
    contract = version.contract
    generates = not contract.labels and contract.output_head == "generate"
    decoding = contract.decoding.model_dump(exclude_defaults=True) if generates else {}
    return (
        ("digest", version.digest),
        ("method", version.method),
        ("config", _settings(version.config.get("method", version.config))),
        ("output head", contract.output_head),
        ("labels", ", ".join(contract.labels) or None),
        ("template", repr(contract.template) if contract.input_form == "prompt" else "the backbone's chat template"),
        ("input", f"at most {human_count(contract.max_length)} tokens, cut on the {contract.truncation_side}"),
        ("decoding", _settings(decoding) or None),
        ("parameters", None if version.n_params is None else human_count(version.n_params)),
        ("size", human_bytes(version.bytes)),
    )


def _origin(registry: "Registry", version: "Version", lineage: "list[VersionRef]") -> Iterable[tuple[str, object]]:
    return (
        ("backbone", _backbone(registry, version.backbone)),
        ("trained on", told(version.contract.quantised) if version.contract.quantised else None),
        ("lineage", " <- ".join(map(str, [version.ref, *lineage])) if lineage else None),
        ("data", _dataset(registry, version.dataset)),
        ("run", version.run),
        ("seed", version.seed),
        ("code", version.code_version),
        ("came by", "training here" if version.run else "import or upload: no run of this registry made it"),
        ("created", f"{human_time(version.created_at)} by {version.created_by}"),
    )


def _standing(registry: "Registry", version: "Version") -> Iterable[tuple[str, object]]:
    because = f": {version.reason}" if version.reason else ""
    return (
        ("state", f"{version.state}{because}"),
        ("aliases", " ".join(version.aliases) or None),
        figures_fact(registry, version),
    )


def _settings(values: Mapping[str, Any]) -> str:
    """``rank 8, alpha 16``; what is empty says nothing."""
    return "; ".join(f"{key} {setting(value)}" for key, value in values.items() if value not in _EMPTY)


def _lineage(registry: "Registry", version: "Version") -> "list[VersionRef]":
    """Parents from the nearest on, as far as the registry has them."""
    found: list[VersionRef] = []
    while version.parent is not None:
        found.append(version.parent)
        try:
            version = registry.versions.get(str(version.parent))
        except NotFound:  # deleted: its own parent is known no more
            break
    return found


def _backbone(registry: "Registry", fingerprint: str) -> str:
    try:
        return f"{registry.backbones.get(fingerprint).name} {fingerprint}"
    except NotFound:
        return f"{fingerprint} (not in this home)"


def _dataset(registry: "Registry", digest: str | None) -> str | None:
    if digest is None:
        return None
    try:
        return f"{registry.datasets.get(digest).name} {digest}"
    except NotFound:
        return digest


def _print_moves(events: "Iterable[AliasEvent]") -> None:
    if moves := tuple(events):
        print_heading("Aliases over time")
        print_history(moves)
