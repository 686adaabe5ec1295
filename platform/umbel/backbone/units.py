"""Auto-wrap: which modules of a decoder are gathered together when its weights are sharded over many processes.

A unit is what one process holds whole for a moment. What is in no unit belongs to the root, which is gathered for the
whole pass: norm, and embedding and lm_head where nothing else is said. A layer is never cut: adapters read its weights
inside its own forward, where they are whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from umbel.backbone.config import BackboneConfig
from umbel.backbone.decoder import Decoder
from umbel.core.errors import ConfigError

ROOT = "root"


@dataclass(frozen=True, slots=True)
class Unit:
    """Modules that are gathered and freed together."""

    modules: tuple[str, ...]
    """Names in the decoder, such as ``layers.0``; empty for the root."""
    parameters: int

    @property
    def name(self) -> str:
        ends = dict.fromkeys([*self.modules[:1], *self.modules[-1:]])
        return " to ".join(ends) or ROOT


def plan_units(decoder: Decoder, wrap: str = "layer") -> list[Unit]:
    """Units in the order of use, the root last.

    ``layer``: each decoder layer, and embedding and lm_head where they are not one matrix. ``size=1e6``: neighbouring
    layers together until a unit has so many parameters. ``modules=layers.0,layers.1*``: these alone, by name.
    Raises ConfigError (``invalid_wrap``).
    """
    kind, _, value = wrap.partition("=")
    names = _units_of(decoder)
    groups: list[tuple[str, ...]]
    if wrap == "layer":
        groups = [(name,) for name in names]
    elif kind == "size" and value:
        groups = list(_by_size(decoder, names, _positive(wrap, value)))
    elif kind == "modules" and value:
        groups = [(name,) for name in _named(decoder, names, value.split(","))]
    else:
        raise _invalid(wrap, "use layer, size=1e6 or modules=layers.0,layers.1")
    units = [Unit(group, sum(_size(decoder, name) for name in group)) for group in groups]
    rest = sum(p.numel() for p in decoder.parameters()) - sum(unit.parameters for unit in units)
    return [*units, Unit((), rest)]


def meta_decoder(config: BackboneConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """Names, shapes and dtypes without a byte of weights."""
    return Decoder(config, dtype, torch.device("meta"))


def _units_of(decoder: Decoder) -> list[str]:
    layers = [f"layers.{index}" for index in range(len(decoder.layers))]
    return layers if decoder.lm_head is None else ["embedding", *layers, "lm_head"]


def _size(decoder: Decoder, name: str) -> int:
    return sum(parameter.numel() for parameter in decoder.get_submodule(name).parameters())


def _by_size(decoder: Decoder, names: Sequence[str], least: float) -> Iterator[tuple[str, ...]]:
    """Embedding and lm_head stay alone; what is left over before them is a smaller unit."""
    current: list[str] = []
    for name in names:
        layer = name.startswith("layers.")
        if current and not layer:
            yield tuple(current)
            current = []
        current.append(name)
        if not layer or sum(_size(decoder, each) for each in current) >= least:
            yield tuple(current)
            current = []
    if current:
        yield tuple(current)


def _named(decoder: Decoder, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.strip()) for name in names):
            tied = pattern.strip() in ("embedding", "lm_head") and decoder.lm_head is None
            why = "embedding and lm_head are one matrix here and stay in the root" if tied else "no unit is called so"
            raise _invalid(f"modules={pattern}", f"{why}; there are {names[0]} to {names[-1]}")
    return [name for name in names if any(fnmatchcase(name, pattern.strip()) for pattern in patterns)]


def _positive(wrap: str, value: str) -> float:
    try:
        size = float(value)
    except ValueError:
        size = 0.0
    if size <= 0:
        raise _invalid(wrap, "size is a number of parameters, such as size=1e6")
    return size


def _invalid(wrap: str, hint: str) -> ConfigError:
    return ConfigError(f"--wrap {wrap} is no way to make units.", code="invalid_wrap", param="wrap", hint=hint)
