"""``umbel``: the frame around every command: help, errors, exit codes.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 gate not passed, 130 interrupted.
Nothing heavy is imported here; ``umbel --help`` must stay instant.
"""

import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, NoReturn

import typer

from umbel.cli.commands import WIDTH, LazyGroup
from umbel.cli.console import error_line, examples, print_error
from umbel.cli.starting import start
from umbel.core.errors import Interrupted, UmbelError, UsageError
from umbel.core.extras import missing_extra

INTERRUPTED = 130

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": WIDTH},
    epilog=examples(
        "umbel pull backbone smollm2-135m-instruct",
        "umbel pull dataset tweets-sentiment",
        "umbel COMMAND --help",
        note="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 gate not passed, 130 interrupted.",
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"umbel {version('umbel')}")
        raise typer.Exit


@app.callback()
def umbel(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, store, compare and serve any number of task adapters on one frozen backbone."""


def main(args: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; every error becomes two lines on stderr."""
    try:
        code = typer.main.get_command(app).main(list(args), prog_name="umbel", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UmbelError as error:
        return _tell(error, args)
    except (KeyboardInterrupt, typer.Abort):
        return _tell(Interrupted("interrupted."), args)
    except typer.TyperException as error:
        return _mistyped(error, args)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        return _unknown(error, args) if missing is None else _tell(missing, args)
    except Exception as error:
        return (
            _tell(_validation(error, args), args)
            if type(error).__name__ == "ValidationError"
            else _unknown(error, args)
        )


def run() -> NoReturn:
    """The console's entry point."""
    start(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))


def _tell(error: UmbelError, args: Sequence[str]) -> int:
    print_error(error, as_json="--json" in args)
    return error.exit_code


def _mistyped(error: typer.TyperException, args: Sequence[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # typer gives it no public name; its message is the help
        typer.echo(error.format_message(), err=True)
        return UsageError.exit_code
    return _tell(_usage(error), args)


def _usage(error: typer.TyperException) -> UmbelError:
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else "umbel"
    told = error.format_message().replace(": Input should ", ": it should ")  # typer checks bounds by pydantic
    return UsageError(told, hint=f"{command} --help")


def _validation(error: Any, args: Sequence[str]) -> UmbelError:
    from umbel.core.validation import told  # pydantic would cost `umbel --help` a third of its time

    found = told(error)
    found.hint = found.hint or f"{' '.join(('umbel', *takewhile(str.isalpha, args[:2])))} --help"
    return found


def _unknown(error: Exception, args: Sequence[str]) -> int:
    if os.environ.get("UMBEL_DEBUG") == "1":
        raise error
    told = UmbelError(
        f"{type(error).__name__}: {error_line(error)}",
        hint="this is a fault of umbel, not yours; UMBEL_DEBUG=1 before the command shows where it happened",
    )
    return _tell(told, args)
