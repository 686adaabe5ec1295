"""Training: many adapters at once on one frozen backbone. ``fit`` is the door; ``loop.py`` and ``window.py`` the heart.
``tune`` is the other door: it trains layers of the backbone, or all of it, on a copy.

The life of a step: ``batches`` chooses each task's rows, ``passes`` lays them out with the other tasks' rows,
``forward`` runs the backbone with everybody's adapters on, ``losses`` and ``window`` give each adapter its own
gradient, and each ``trainee`` steps with its own optimizer.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.training.fitting import TrainedAdapter, fit, resume
    from umbel.training.task import Task
    from umbel.training.tuning.tune import Tuned, tune

__all__ = ["Task", "TrainedAdapter", "Tuned", "fit", "resume", "tune"]

_WHERE = {
    "Task": "task",
    "TrainedAdapter": "fitting",
    "Tuned": "tuning.tune",
    "fit": "fitting",
    "resume": "fitting",
    "tune": "tuning.tune",
}


def __getattr__(name: str) -> Any:
    """Loads torch on first use only: ``umbel datasets list`` reads ``umbel.training.data`` and must stay quick."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
