"""A sweep's table, for the card and the terminal alike."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.training.sweep.sweeping import Sweep, Tried


def columns(sweep: "Sweep") -> tuple[str, ...]:
    return (*sweep.tried[0].choice, "loss", "accuracy", "steps", "end")


def rows(sweep: "Sweep") -> list[tuple[str, ...]]:
    """The winner first, then by how far each came and how good it then was."""
    return [(*map(_plain, each.choice.values()), *_found(each)) for each in sweep.tried]


def choice_text(choice: Any) -> str:
    """``lr 0.0003, rank 8``."""
    return ", ".join(f"{key} {_plain(value)}" for key, value in choice.items())


def _found(tried: "Tried") -> tuple[str, ...]:
    loss = "" if tried.loss is None else f"{tried.loss:.4g}"
    accuracy = f"{tried.accuracy:.3g}" if tried.accuracy else ""
    return loss, accuracy, f"{tried.steps:,}", tried.status


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
