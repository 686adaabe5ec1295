"""``umbel adapters import, publish, export``: between folders and the registry.

What is stored is always what umbel itself would write, so two folders that mean the same adapter are one version.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.adapters.converting import converted
from umbel.cli.adapters.reported import figures_fact, keep_reported
from umbel.cli.console import Json, examples, human_bytes, human_count, print_facts, print_json
from umbel.cli.opened import open_registry
from umbel.cli.words import commas, pairs
from umbel.core.clock import now_ms
from umbel.core.errors import AdapterRefused, NotFound, UsageError
from umbel.core.manifest import CARD_FILE, UMBEL_FILE, read_metrics
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.adapters.adapter import Adapter
    from umbel.registry.records import Backbone, Version
    from umbel.registry.registry import Registry

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="With adapter_config.json or umbel.json.", metavar="DIR")]
Name = Annotated[str, typer.Option("--name", help="Adapter whose next version it becomes.", metavar="NAME")]
For = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="The one it was trained on; may be left out where only one can be.", metavar="NAME"
    ),
]
Noop = Annotated[bool, typer.Option("--allow-noop", help="Even if it changes nothing (for tests).")]
Description = Annotated[str | None, typer.Option("--description", help="What this version does.", metavar="TEXT")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="May be given again.", metavar="K=V")]


@app.command(
    "import",
    epilog=examples(
        "umbel adapters import ./my-lora --name tone",
        "umbel adapters import ./my-classifier --name mood --labels negative,neutral,positive",
        "umbel adapters import ./my-lora --name tone --backbone llama --tag team=search",
        "umbel adapters import ./my-loha --name tone --as-lora --max-error 0.02",
    ),
)
def import_(
    folder: Folder,
    name: Name,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Names of a classifier's rows, in order.", metavar="A,B,...")
    ] = None,
    as_lora: Annotated[
        bool, typer.Option("--as-lora", help="Convert another method of PEFT (LoHa, OFT, VeRA ...) to LoRA.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="With --as-lora; else the smallest within --max-error.", metavar="R", min=1),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error", help="With --as-lora: share of a change that may be lost (0.05).", metavar="E", min=0.0
        ),
    ] = None,
    backbone: For = None,
    allow_noop: Noop = False,
    description: Description = None,
    tag: Tag = None,
    as_json: Json = False,
) -> None:
    """Import a folder that PEFT or umbel wrote. Nothing in it is guessed and no pickle is opened."""
    if not as_lora and (rank, max_error) != (None, None):
        raise UsageError("--rank and --max-error are of --as-lora.", hint="add --as-lora, or leave them out")
    with open_registry() as registry, TemporaryDirectory() as made:
        base = _backbone_for(registry, folder, backbone)
        source = folder
        if as_lora:
            source = Path(made)
            converted(folder, base.name, source, rank=rank, max_error=max_error, quiet=as_json)
        adapter = _read(source, base, commas([labels or ""]), allow_noop)
        _publish(registry, adapter, source, base, name, description, pairs(tag or ()), as_json)


@app.command(epilog=examples("umbel adapters publish ./mood-3 --name mood"))
def publish(
    folder: Folder,
    name: Name,
    backbone: For = None,
    allow_noop: Noop = False,
    description: Description = None,
    tag: Tag = None,
    as_json: Json = False,
) -> None:
    """Publish a folder that umbel exported. Its umbel.json says all that import has to ask."""
    if folder.is_dir() and not (folder / UMBEL_FILE).is_file():
        raise AdapterRefused(
            f"{folder} holds no {UMBEL_FILE}.",
            code="missing_file",
            hint=f"umbel adapters import {folder} --name {name} takes a folder that PEFT wrote",
        )
    with open_registry() as registry:
        base = _backbone_for(registry, folder, backbone)
        adapter = _read(folder, base, (), allow_noop)
        _publish(registry, adapter, folder, base, name, description, pairs(tag or ()), as_json)


@app.command(epilog=examples("umbel adapters export mood ./mood", "umbel adapters export mood:3 ./mood-3"))
def export(
    ref: Annotated[str, typer.Argument(help="name, name:3 or name@alias.", metavar="NAME[:N]")],
    folder: Annotated[Path, typer.Argument(help="New or empty.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Write a version as a PEFT folder. umbel.json beside it says what PEFT's format cannot."""
    with open_registry() as registry:
        version = registry.versions.get(ref)
        registry.export(str(version.ref), folder)
    if as_json:
        return print_json({"version": version.ref, "folder": folder})
    return typer.echo(f"{version.ref} in {folder}")


def _backbone_for(registry: "Registry", folder: Path, name: str | None) -> "Backbone":
    """The one that was named, or that umbel.json is bound to, or the only one there is."""
    if not folder.is_dir():
        raise NotFound(
            f"there is no folder {folder}.", code="folder_not_found", hint="give the folder, not a file in it"
        )
    if name is not None:
        return registry.backbones.get(name)
    known = registry.backbones.list()
    if bound := [backbone for backbone in known if backbone.fingerprint == _bound_to(folder)]:
        return bound[0]
    if not known:
        return registry.backbones.get("any")  # raises, and tells how to pull one
    if len(known) > 1:
        names = ", ".join(backbone.name for backbone in known)
        raise UsageError(f"it may be for {names}.", code="backbone_unclear", hint="say which: --backbone NAME")
    return known[0]


def _bound_to(folder: Path) -> str | None:
    import json

    try:
        return str(json.loads((folder / UMBEL_FILE).read_bytes())["backbone"])
    except (OSError, ValueError, LookupError, TypeError):
        return None  # import_folder says what is wrong with it


def _read(folder: Path, base: "Backbone", labels: Sequence[str], allow_noop: bool) -> "Adapter":
    from umbel.adapters.peft_io import check_effect, import_folder
    from umbel.backbone.config import parse_config
    from umbel.backbone.installed import find
    from umbel.backbone.loading import read_matrix

    adapter = import_folder(
        folder,
        parse_config(base.config).shape,
        backbone=base.fingerprint,
        labels=labels,
        frozen=lambda name: read_matrix(find(Settings.load(), base.name).folder, name),
    )
    if labels and adapter.contract.labels != tuple(labels):
        raise UsageError(
            f"--labels says {', '.join(labels)}; the folder says {', '.join(adapter.contract.labels) or 'none'}.",
            code="label_mismatch",
            hint="leave --labels out: umbel.json has them",
        )
    if not allow_noop:
        check_effect(adapter)
    return adapter


def _publish(
    registry: "Registry",
    adapter: "Adapter",
    folder: Path,
    base: "Backbone",
    name: str,
    description: str | None,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    from umbel.adapters.peft_io import export_files, import_folder

    def reads_back(staged: Path) -> None:
        import_folder(staged, adapter.weights.shape, backbone=base.fingerprint)

    if description is not None:
        adapter = replace(adapter, contract=adapter.contract.model_copy(update={"description": description}))
    read_metrics(folder)  # a wrong one is told before anything is published
    started = now_ms()
    card = folder / CARD_FILE
    version = registry.publish(
        export_files(adapter, backbone_name=base.name),
        name=name,
        method=adapter.method.name,
        config=adapter.config,
        contract=adapter.contract,
        backbone=base.fingerprint,
        validate=reads_back,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        n_params=adapter.num_parameters,
        description=description,
        tags=tags,
    )
    new = version.created_at >= started
    if new:
        version = keep_reported(registry, version, folder)
    return print_json(version) if as_json else _print(registry, version, base, new=new)


def _print(registry: "Registry", version: "Version", base: "Backbone", *, new: bool) -> None:
    print_facts(
        (
            ("version", f"{version.ref}{'' if new else ' (published before: the same bytes)'}"),
            ("digest", version.digest),
            ("method", version.method),
            ("output head", version.output_head),
            ("labels", ", ".join(version.contract.labels) or None),
            ("parameters", human_count(version.n_params or 0)),
            ("size", human_bytes(version.bytes)),
            ("backbone", base.name),
            figures_fact(registry, version),
            ("aliases", ", ".join(version.aliases) or "none"),
        )
    )
    if "champion" not in version.aliases:
        typer.echo(f"The bare name answers as before; to change that: umbel promote {version.ref}", err=True)
