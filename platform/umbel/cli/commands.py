"""The table of commands: what stands in ``umbel --help``, and the module that is loaded when one is called."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MethodType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

START, TASKS, ANSWERS, REGISTRY, HOUSE = (
    "Start here",
    "Train and judge",
    "Serve and ask",
    "Adapters and versions",
    "House keeping",
)

WIDTH = 100
"""Widest help, in columns; typer's own limit of 80 breaks most lines."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: ``app`` is the name of a ``typer.Typer`` in ``umbel.cli.<module>``."""

    name: str
    module: str
    help: str
    panel: str
    app: str = "app"

    @property
    def path(self) -> str:
        return f"umbel.cli.{self.module}"

    def load(self) -> Any:
        """The command itself; only now is its module imported."""
        command = typer.main.get_command(getattr(import_module(self.path), self.app))
        command.name = self.name
        return plain(command)

    def stub(self) -> TyperCommand:
        """What help and completion show: a name and one line, without an import."""
        return TyperCommand(name=self.name, help=self.help)


COMMANDS = (
    Entry("pull", "pull", "Fetch a backbone or a dataset.", START),
    Entry("doctor", "doctor", "Check that this machine can train and serve.", START),
    Entry("estimate", "estimate", "Tell memory and work before you train.", START),
    Entry("train", "train", "Train an adapter and publish it.", TASKS),
    Entry("data", "data", "Check a dataset before training on it.", TASKS),
    Entry("runs", "runs", "Follow, resume and cancel training runs.", TASKS),
    Entry("eval", "eval", "Score one version on a dataset.", TASKS),
    Entry("compare", "compare", "Tell which of two versions is better, and how sure that is.", TASKS),
    Entry("experiments", "experiments", "Split live traffic between versions and decide.", TASKS),
    Entry("serve", "serve", "Answer over HTTP, every adapter in one batch.", ANSWERS),
    Entry("run", "run", "Ask one adapter, from the shell or a file.", ANSWERS),
    Entry("ps", "ps", "Show what a server holds and does.", ANSWERS),
    Entry("ui", "ui", "Open the web pages.", ANSWERS),
    Entry("adapters", "adapters", "List, search, show, import, export and retire adapters.", REGISTRY),
    Entry("alias", "alias", "Name a version, such as canary, and see where a name has pointed.", REGISTRY),
    Entry("promote", "promote", "Make a version the one that the bare name answers with.", REGISTRY),
    Entry("rollback", "rollback", "Undo the last promote.", REGISTRY),
    Entry("backbones", "backbones", "List, show, export and remove backbones of the home.", REGISTRY),
    Entry("datasets", "datasets", "List, show and remove datasets of the home.", REGISTRY),
    Entry("verify", "verify", "Check that every version is whole; --deep reads every byte.", HOUSE),
    Entry("gc", "gc", "Free what no version needs any more.", HOUSE),
    Entry("db", "db", "Upgrade, check and back up the registry's database.", HOUSE),
    Entry("keys", "keys", "Create and revoke API keys.", HOUSE),
    Entry("worker", "worker", "Run training jobs that wait in the queue.", HOUSE),
    Entry("bench", "bench", "Measure speed on this machine.", HOUSE),
)


def plain(command: Any) -> Any:
    """Turns boxes off in the help of a command and all below it: it reads the same in a terminal, pipe and log."""
    command.rich_markup_mode = None
    command.context_settings.setdefault("max_content_width", WIDTH)
    # each app brings the two completion options, which only the root honours
    command.params = [param for param in command.params if param.name not in ("install_completion", "show_completion")]
    command.format_help = MethodType(_help, command)
    for child in getattr(command, "commands", {}).values():
        plain(child)
    return command


def _help(command: Any, ctx: Any, formatter: Any) -> None:
    """Examples stand before the options: most people look for one to change."""
    command.format_usage(ctx, formatter)
    command.format_help_text(ctx, formatter)
    _epilog(command, ctx, formatter)
    command.format_options(ctx, formatter)


def _epilog(command: Any, _ctx: Any, formatter: Any) -> None:
    """Examples stand flush with the other sections; typer would indent them."""
    if command.epilog:
        formatter.write_paragraph()
        formatter.write_text(command.epilog)


class LazyGroup(TyperGroup):
    """Holds stubs, so that help, completion and "did you mean" import nothing; a call loads the real command.

    Commands whose module does not exist are not shown.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.entries = {entry.name: entry for entry in COMMANDS if find_spec(entry.path) is not None}
        self.commands = {name: entry.stub() for name, entry in self.entries.items()}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.entries), default=0)
        for panel in dict.fromkeys(entry.panel for entry in self.entries.values()):
            with formatter.section(panel):
                shown = [entry for entry in self.entries.values() if entry.panel == panel]
                formatter.write_dl([(f"{entry.name:<{width}}", entry.help) for entry in shown])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _epilog(self, ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.entries[name].load() if name in self.entries else command, rest
