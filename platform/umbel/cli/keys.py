"""``umbel keys``: who may talk to a server that others can reach."""

from typing import Annotated

import typer

from umbel.cli.console import Json, examples, human_time, print_json, print_table
from umbel.cli.opened import open_registry

app = typer.Typer(no_args_is_help=True, help="Create and revoke API keys.")


@app.command(
    epilog=examples("umbel keys create web --scope infer --scope read", "umbel keys create ci --scope train,publish")
)
def create(
    name: Annotated[str, typer.Argument(help="Who or what will hold it.", metavar="NAME")],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            "-s",
            help="infer, read, train, publish, promote or admin (all); again or with commas.",
            metavar="SCOPE",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Create a key. Its secret is shown this once; stdout has nothing else, so it can be piped."""
    scopes = [part for given in scope for part in given.split(",") if part]
    with open_registry() as registry:
        key, secret = registry.keys.create(name, scopes)
    if as_json:
        return print_json({"key": key, "secret": secret})
    typer.echo(
        f"Key {key.id} for {key.name}: {', '.join(key.scopes)}. Keep the secret: it is shown only now.", err=True
    )
    return typer.echo(secret)


@app.command("list", epilog=examples("umbel keys list"))
def list_(as_json: Json = False) -> None:
    """List keys, never their secrets."""
    with open_registry() as registry:
        keys = registry.keys.list()
    if as_json:
        return print_json(keys)
    rows = [
        (
            key.id,
            key.name,
            f"umbel_{key.prefix}_...",
            ",".join(key.scopes),
            human_time(key.created_at),
            human_time(key.revoked_at) if key.revoked_at else None,
        )
        for key in keys
    ]
    empty = "No key yet. Create one: umbel keys create web --scope infer"
    columns = ("ID", "NAME", "SECRET", "SCOPES", "CREATED", "REVOKED")
    return print_table(columns, rows, empty=empty, under=("SCOPES", "CREATED", "REVOKED"))


@app.command(epilog=examples("umbel keys revoke key-01k9...", "umbel keys revoke 3f2a91bc"))
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, the eight digits after umbel_, or its name.", metavar="KEY")],
    as_json: Json = False,
) -> None:
    """Revoke a key, at once and for good."""
    with open_registry() as registry:
        gone = registry.keys.revoke(key)
    return print_json(gone) if as_json else typer.echo(f"Revoked {gone.id} ({gone.name})")
