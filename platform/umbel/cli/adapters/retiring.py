"""``umbel adapters yank, unyank, deprecate, rm``: taking versions out of service."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, examples, print_json
from umbel.cli.opened import open_registry
from umbel.core.errors import UsageError
from umbel.core.names import AdapterRef

if TYPE_CHECKING:
    from umbel.registry.records import Version

app = typer.Typer()

One = Annotated[str, typer.Argument(help="One version: name:3, name@alias or name@sha256:...", metavar="NAME:N")]
Why = Annotated[str, typer.Option("--reason", help="Why; everybody who asks for it is told.", metavar="TEXT")]


@app.command(epilog=examples("umbel adapters yank mood:3 --reason 'leaks names'"))
def yank(version: One, reason: Why, as_json: Json = False) -> None:
    """Refuse a version, except by its digest. Its aliases stay; `umbel rollback` moves them."""
    with open_registry() as registry:
        gone = registry.versions.yank(version, reason=reason)
    _tell(gone, as_json, f"{gone.ref} is yanked")
    if gone.aliases and not as_json:
        commands = [_back(gone.name, alias) for alias in gone.aliases]
        told = f"{'; '.join(commands)}, or umbel adapters unyank {gone.ref}"
        typer.echo(f"It still has {', '.join(gone.aliases)}, which answers no more; {told}", err=True)


@app.command(epilog=examples("umbel adapters unyank mood:3"))
def unyank(version: One, as_json: Json = False) -> None:
    """Bring a yanked version back."""
    with open_registry() as registry:
        back = registry.versions.unyank(version)
    _tell(back, as_json, f"{back.ref} is ready again")


@app.command(epilog=examples("umbel adapters deprecate mood:1 --reason 'mood:4 is better at irony'"))
def deprecate(version: One, reason: Why, as_json: Json = False) -> None:
    """Advise against a version; it answers as before."""
    with open_registry() as registry:
        old = registry.versions.deprecate(version, reason=reason)
    _tell(old, as_json, f"{old.ref} is deprecated")


@app.command(epilog=examples("umbel adapters rm mood:3", "umbel adapters rm mood --yes"))
def rm(
    what: Annotated[
        str, typer.Argument(help="A version (name:3), or an adapter with all of them.", metavar="NAME[:N]")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a whole adapter goes.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why.", metavar="TEXT")] = None,
    as_json: Json = False,
) -> None:
    """Remove a version, or a whole adapter. `umbel gc` frees the bytes a day later."""
    parsed = AdapterRef.parse(what)
    with open_registry() as registry:
        if str(parsed) != parsed.name:
            gone = registry.versions.remove(what, reason=reason)
            return _tell(gone, as_json, f"{gone.ref} is removed")
        adapter = registry.adapters.get(what)
        _confirm(f"Remove {what} with all its versions and aliases?", f"umbel adapters rm {what}", yes)
        registry.adapters.remove(what, reason=reason)
    return print_json({"removed": adapter}) if as_json else typer.echo(f"{what} is removed")


def _confirm(question: str, command: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to confirm it.", code="not_confirmed", hint=f"{command} --yes")
    typer.confirm(question, abort=True, err=True)


def _back(name: str, alias: str) -> str:
    return f"umbel rollback {name}" if alias == "champion" else f"umbel rollback {name} --alias {alias}"


def _tell(version: "Version", as_json: bool, line: str) -> None:
    because = f": {version.reason}" if version.reason else ""
    print_json(version) if as_json else typer.echo(line + because)
