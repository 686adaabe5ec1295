"""A training over several processes, each of which runs the same command: who tells what, and who holds what."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from umbel.core.errors import Conflict, Interrupted, NotFound, Unavailable, UsageError
from umbel.core.forms import Form
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.training.distributed.group import Group
    from umbel.training.distributed.strategy import Strategy

_TOLD_ONCE = (UsageError, NotFound, Conflict, Interrupted)
"""What every process meets alike."""


@dataclass(frozen=True, slots=True)
class Mates:
    """This process and the others."""

    group: "Group"
    strategy: "Strategy"


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def over_processes(device: str, strategy: str | None, *, wrap: str, offload: bool) -> Iterator[Mates]:
    """Joins torchrun's processes, if there are any. Errors that all of them meet are told by the first alone."""
    from umbel.training.distributed.group import joined, mate_gone
    from umbel.training.distributed.strategy import Strategy

    with joined(device) as group:
        try:
            yield Mates(group, Strategy.read(strategy, group.size, wrap=wrap, offload=offload))
        except _TOLD_ONCE as error:
            if group.leads:
                raise
            raise typer.Exit(error.exit_code) from None
        except RuntimeError as error:
            if not mate_gone(error):
                raise
            raise Unavailable(
                f"another process of this training is gone: {str(error).splitlines()[0][:100]}",
                code="mate_gone",
                hint="its own error is above, if it had one; --max-restarts 3 goes on by itself",
            ) from None


def load(
    settings: Settings, name: str | None, mates: Mates, *, dtype: str, device: str, quantise: Form | None = None
) -> "Backbone":
    """Dense or quantised weights, since packed ones have no gradient; under fsdp this process's shards alone."""
    from umbel.cli.choosing import choose_backbone
    from umbel.cli.known import ensure_backbone
    from umbel.training.distributed.load import load_frozen

    found = choose_backbone(settings, name)
    if mates.group.leads:
        ensure_backbone(settings, found)
    mates.group.wait()
    return load_frozen(
        found.folder, mates.strategy, mates.group, dtype=dtype, device=device, name=found.name, quantise=quantise
    )


def whole(backbone: "Backbone", mates: Mates, *, dtype: str, device: str) -> "Backbone":
    """What the first process judges with, alone: read again where it had only shards."""
    from umbel.backbone.loading import load_backbone
    from umbel.training.distributed.group import own_device

    if not mates.strategy.sharded:
        return backbone
    return load_backbone(backbone.folder, dtype=dtype, device=own_device(device), name=backbone.name)
