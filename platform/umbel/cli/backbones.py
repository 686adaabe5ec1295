"""``umbel backbones``: what is in the home."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, human_bytes, print_facts, print_json, print_table
from umbel.core.errors import Conflict
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.installed import InstalledBackbone

app = typer.Typer(no_args_is_help=True, help="List, show, export and remove backbones of the home.")

Name = Annotated[str, typer.Argument(help="As `umbel backbones list` shows it.", metavar="NAME")]


@app.command("list", epilog=examples("umbel backbones list", "umbel backbones list --json"))
def list_(as_json: Json = False) -> None:
    """List the backbones of the home."""
    from umbel.backbone.installed import installed

    found = installed(Settings.load())
    if as_json:
        return print_json(found)
    rows = [
        (one.name, human_bytes(one.bytes), one.licence or "not stated", one.source.source, _form(one)) for one in found
    ]
    empty = "No backbone yet. Fetch one: umbel pull backbone smollm2-135m-instruct"
    return print_table(("NAME", "SIZE", "LICENCE", "SOURCE", "FORM"), rows, empty=empty, under=("SOURCE",))


def _form(backbone: "InstalledBackbone") -> str:
    """A root is whole; one that was trained here says from what, and whether it needs that one to be loaded."""
    parent = backbone.source.parent
    if parent is None:
        return "root"
    return f"changes to {parent.name}" if backbone.partial else f"whole, from {parent.name}"


@app.command(epilog=examples("umbel backbones show smollm2-135m-instruct", "umbel backbones show mood:2"))
def show(name: Name, as_json: Json = False) -> None:
    """Show where a backbone came from."""
    from umbel.cli.choosing import named_backbone

    settings = Settings.load()
    found = named_backbone(settings, name)
    if as_json:
        return print_json(found)
    return print_facts(
        (
            ("name", found.name),
            ("form", _form(found)),
            ("versions", _versions(settings, found) or None),
            ("folder", found.folder),
            ("size", human_bytes(found.bytes)),
            ("source", found.source.source),
            ("revision", found.source.revision),
            ("sha256", found.source.sha256),
            ("licence", found.licence or "not stated"),
            ("trained" if found.source.parent else "pulled", found.source.pulled_at),
        )
    )


def _versions(settings: Settings, backbone: "InstalledBackbone") -> list[str]:
    """Of adapters whose champion (or newest version) was made for it."""
    from umbel.registry.query import AdapterQuery
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry:
        known = {one.name: one.fingerprint for one in registry.backbones.list()}
        if backbone.name not in known:
            return []
        page = registry.adapters.list(AdapterQuery(backbone=known[backbone.name]), limit=20)
        return [str(adapter.shown.ref) for adapter in page.items if adapter.shown is not None]


@app.command(epilog=examples("umbel backbones export mood:2 ./mood-full", "umbel backbones export mood.3fa9c1d2 out"))
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")],
    as_json: Json = False,
) -> None:
    """Write a backbone as a whole Hugging Face folder.

    transformers and others load it. One that holds only what was trained is put together with its parent. NAME may be
    a version (mood:2): the backbone that it was made for.
    """
    from umbel.backbone.saving import export_backbone
    from umbel.cli.choosing import named_backbone
    from umbel.core.folders import building, size_of

    if folder.exists():
        raise Conflict(f"{folder} is there already.", code="folder_exists", hint="name a new folder")
    found = named_backbone(Settings.load(), name)
    with building(folder.resolve()) as new:
        export_backbone(found.folder, new)
    if as_json:
        return print_json({"exported": found.name, "folder": str(folder), "bytes": size_of(folder)})
    typer.echo(f"Wrote {found.name} to {folder}, {human_bytes(size_of(folder))}")
    typer.echo(f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    return None


@app.command(epilog=examples("umbel backbones rm smollm2-135m-instruct"))
def rm(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even while adapters are bound to it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a backbone from the home. Adapters made for it stay, and answer again once it is pulled again."""
    from umbel.backbone.installed import check_unneeded, find, remove
    from umbel.cli.known import forget_backbone

    settings = Settings.load()
    if not force:
        check_unneeded(settings, name)
    forget_backbone(settings, find(settings, name).name, force=force)
    gone = remove(settings, name)
    if as_json:
        return print_json({"removed": gone})
    return typer.echo(f"Removed {gone.name}, {human_bytes(gone.bytes)}")
