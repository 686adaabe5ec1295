"""What a condition is: a name, a look at the machine, and where it is safe a way to mend it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from umbel.cli.console import error_line
from umbel.cli.doctor.patient import Patient, Skip
from umbel.core.errors import UmbelError
from umbel.core.extras import missing_extra


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Works, but not as well or as safely as it could."""
    FAILED = "failed"
    """Something a user will ask for cannot work."""
    SKIPPED = "skipped"
    """Nothing to look at, or what it looks at has failed already."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look found. ``fix`` is a command or change, there for every warning and failure."""

    state: State
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must be well."""

    name: str
    look: Callable[[Patient], Finding]
    """Changes nothing that lasts; raises Skip, UmbelError or anything else, which ``examine`` turns into a finding."""
    mend: Callable[[Patient], None] | None = None
    """For ``--fix``: loses nothing, whatever the reason."""
    heavy: bool = False
    """Reads every byte, or loads a backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    name: str
    state: State
    text: str
    fix: str | None
    mended: bool = False


def fine(text: str) -> Finding:
    return Finding(State.OK, text)


def warning(text: str, fix: str) -> Finding:
    return Finding(State.WARNING, text, fix)


def failed(text: str, fix: str) -> Finding:
    return Finding(State.FAILED, text, fix)


def skipped(text: str) -> Finding:
    return Finding(State.SKIPPED, text)


def examine(condition: Condition, patient: Patient, *, mend: bool = False) -> Result:
    """Looks; with ``mend`` mends what is not well and looks again."""
    found = _look(condition, patient)
    ill = found.state in (State.WARNING, State.FAILED)
    if not (mend and ill and condition.mend is not None):
        return Result(name=condition.name, state=found.state, text=found.text, fix=found.fix)
    trouble = _mend(condition.mend, patient)
    again = _look(condition, patient)
    if trouble is not None:
        again = replace(again, text=f"{again.text}; mending failed: {trouble}")
    well = again.state is State.OK
    return Result(name=condition.name, state=again.state, text=again.text, fix=again.fix, mended=well)


def _look(condition: Condition, patient: Patient) -> Finding:
    try:
        return condition.look(patient)
    except Skip as skip:
        return skipped(str(skip))
    except UmbelError as error:
        return failed(error.message, error.hint or "see the message")
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        return failed(str(error), "please report this") if missing is None else skipped(missing.message)
    except Exception as error:
        return failed(f"{type(error).__name__}: {error_line(error)}", "please report this: the check itself broke")


def _mend(mend: Callable[[Patient], None], patient: Patient) -> str | None:
    try:
        mend(patient)
    except (OSError, UmbelError) as error:
        return error_line(error)
    return None
