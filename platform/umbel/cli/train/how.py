"""How a run is trained, beside what its tasks say: kept with the run, so that it goes on as it began."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.core.errors import UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Part of what decides a run's bytes: sums round otherwise on packed rows than on padded ones, and so on."""

    dtype: str = "auto"
    checkpointing: str = "none"
    pack: bool = False
    backbone: str | None = None
    """None where there is one only, or where a parent names it."""

    @property
    def told(self) -> dict[str, Any]:
        """For the run's record, beside its task: what is not as usual."""
        return {key: value for key, value in asdict(self).items() if value != getattr(USUAL, key)}

    def write(self, folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "How":
        noted = folder / _FILE
        return cls(**json.loads(noted.read_text(encoding="utf-8"))) if noted.is_file() else USUAL


USUAL = How()
_FILE = "how.json"
_KEYS = frozenset(field.name for field in fields(How))


def split_params(params: Mapping[str, Any]) -> tuple[dict[str, Any], How]:
    """(the task's keys, how it is trained) of a run in the registry."""
    how = How(**{key: value for key, value in params.items() if key in _KEYS})
    return {key: value for key, value in params.items() if key not in _KEYS}, how


def settle(
    registry: "Registry",
    settings: Settings,
    run: str | None,
    *,
    dtype: str | None,
    checkpointing: str | None,
    pack: bool,
    backbone: str | None,
) -> How:
    """What was asked for; of a ``run`` that goes on, or waited, what was asked for when it was begun. It may recompute
    its activations now, which changes none of its numbers.

    Raises UsageError where something else is asked for that would.
    """
    from umbel.cli.train.begin import folder_of, was_begun

    if run is None:
        return How(dtype=dtype or "auto", checkpointing=checkpointing or "none", pack=pack, backbone=backbone)
    begun = was_begun(settings, run)
    noted = How.read(folder_of(settings, run)) if begun else split_params(registry.runs.get(run).params)[1]
    if dtype not in (None, noted.dtype) or (pack and not noted.pack):
        other = f"--dtype {dtype}" if dtype not in (None, noted.dtype) else "--pack"
        raise UsageError(f"{run} was begun without {other}, and would end in other bytes with it.", hint="leave it out")
    return replace(noted, checkpointing=checkpointing or noted.checkpointing, backbone=backbone or noted.backbone)
