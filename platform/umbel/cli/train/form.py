"""The form in which a training holds its backbone: said by its tasks or the settings, and the same when it goes on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from umbel.cli.train.begin import folder_of, was_begun
from umbel.core.errors import UsageError
from umbel.core.folders import folders_in
from umbel.core.forms import Form, read_form, told
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.registry import Registry
    from umbel.training import Task


def with_form(tasks: "list[Task]", settings: Settings) -> "list[Task]":
    """The settings' form where a task says none, so that its run goes on with it whatever the settings are then."""
    if settings.quantise is None:
        return tasks
    return [task if task.quantise is not None else replace(task, quantise=settings.quantise) for task in tasks]


def one_form(tasks: "Sequence[Task]") -> Form | None:
    """Raises UsageError where tasks of the same passes want several."""
    forms = {task.name: read_form(task.quantise) for task in tasks}
    if len(set(forms.values())) > 1:
        wanted = ", ".join(f"{name} {form or 'none'}" for name, form in forms.items())
        raise UsageError(
            f"tasks that train together share one backbone in memory, and want it in several forms: {wanted}.",
            code="other_form",
            param="quantise",
            hint="give --quantise once for all of them",
        )
    return next(iter(forms.values()), None)


def form_of_run(registry: "Registry", settings: Settings, run: str, asked: str | None) -> Form | None:
    """The one that a run was begun with, or is to begin with where it waited in the queue.

    Raises UsageError where another one is ``asked`` for now.
    """
    noted = _noted(registry, settings, run)
    if asked is not None and read_form(asked) != noted:
        raise UsageError(
            f"{run} was begun with {told(noted)}, and would end in other bytes with --quantise {asked}.",
            param="quantise",
            hint="leave it out",
        )
    return noted


def _noted(registry: "Registry", settings: Settings, run: str) -> Form | None:
    from umbel.training import checkpoint

    if was_begun(settings, run) and folders_in(folder_of(settings, run) / "checkpoints"):
        return one_form(checkpoint.read_tasks(checkpoint.newest(folder_of(settings, run))))
    return read_form(registry.runs.get(run).params.get("quantise"))
