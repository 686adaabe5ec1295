"""Which modules a LoRA adapter acts on: PEFT's rules for target modules, layers and patterns, on a Llama's paths."""

import functools
import re
from collections.abc import Mapping, Sequence

from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import EMBEDDING, LM_HEAD
from umbel.core.errors import ConfigError
from umbel.core.shape import LINEARS, BackboneShape

ENDS = {"embed_tokens": (EMBEDDING, "model.embed_tokens"), "lm_head": (LM_HEAD, "lm_head")}
"""The matrices outside of the layers: name -> (layer index, module path)."""
NAMES = (*LINEARS, *ENDS)
"""Last path segments of everything that can be adapted."""

Place = tuple[int, str]
"""(layer, last path segment)."""


def modules(shape: BackboneShape) -> dict[Place, str]:
    """Module path of every place that can be adapted, in order."""
    found = {
        (layer, name): f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(shape.layers)
        for name in LINEARS
    }
    return found | {(layer, name): path for name, (layer, path) in ENDS.items()}


def chosen(targets: Sequence[str], layers: Sequence[int] | None, shape: BackboneShape) -> dict[Place, str]:
    """The modules that ``targets`` (last segments or ends of paths) name in ``layers``.

    PEFT's rule: a whole path is taken as it is, ``layers`` filters those that are matched by their end, and what lies
    outside of the layers is then matched by its whole path only.
    """
    return dict(_chosen(tuple(targets), None if layers is None else tuple(layers), shape))


@functools.lru_cache(maxsize=256)
def _chosen(targets: tuple[str, ...], layers: tuple[int, ...] | None, shape: BackboneShape) -> dict[Place, str]:
    """Kept, since a load asks a dozen times, while others decode."""

    def fits(layer: int, path: str) -> bool:
        if path in targets:
            return True
        ends = any(path.endswith(f".{target}") for target in targets)
        return ends and (layers is None or layer in layers)

    return {(layer, name): path for (layer, name), path in modules(shape).items() if fits(layer, path)}


def check_targets(targets: Sequence[str]) -> None:
    """Raises ConfigError (``unknown_target``) where a Llama backbone has no such module."""
    if not targets:
        raise ConfigError("targets is empty: this adapter would change nothing.", hint=f"choose from {NAMES}")
    if unknown := sorted(target for target in targets if target.rsplit(".", 1)[-1] not in NAMES):
        raise ConfigError(
            f"targets {unknown} match nothing in a Llama backbone.",
            code="unknown_target",
            hint=f"choose from {', '.join(NAMES[:-1])} and {NAMES[-1]}",
        )


def check_found(targets: Sequence[str], layers: Sequence[int] | None, shape: BackboneShape) -> None:
    """Raises ConfigError where a layer does not exist, or a target names no module of this backbone."""
    if beyond := [layer for layer in layers or () if not 0 <= layer < shape.layers]:
        raise ConfigError(
            f"layers {beyond} do not exist: this backbone has {shape.layers}.",
            code="unknown_layer",
            hint=f"count from 0 to {shape.layers - 1}",
        )
    if unmet := [target for target in targets if not chosen((target,), layers, shape)]:
        whole = ENDS.get(unmet[0], (0, "model.layers.0.self_attn.q_proj"))[1]
        raise ConfigError(
            f"targets {unmet} name no module of this backbone" + (f" in layers {list(layers)}." if layers else "."),
            code="unknown_target",
            hint=f"give a module's whole path, such as {whole}, or leave layers out",
        )


def read_targets(
    raw: PeftConfig, layers: tuple[int, ...] | None, shape: BackboneShape
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """(targets, layers) of ``target_modules`` without ``exclude_modules``, a pattern resolved to what it matches here.

    Targets are last segments where every layer has them. Names of no Llama module stay, and are refused later.
    """
    wanted, without = raw.take("target_modules"), raw.take("exclude_modules")
    if isinstance(wanted, str) and wanted != "all-linear":
        met = {place: path for place, path in modules(shape).items() if _fullmatch(wanted, path)}
        layers = None  # PEFT does not filter what a pattern matched
    else:
        names = LINEARS if wanted == "all-linear" else raw.names("target_modules", ("q_proj", "v_proj"))
        if not without:
            met_by = [name for name in names if chosen((name,), layers, shape) or name.rsplit(".", 1)[-1] not in NAMES]
            return _ordered(met_by or names), layers
        met = chosen(names, layers, shape)
    excluded = _excluded(raw, without, shape) if without else {}
    return shortest({place: path for place, path in met.items() if place not in excluded}, layers, shape), layers


def _excluded(raw: PeftConfig, without: object, shape: BackboneShape) -> Mapping[Place, str]:
    if isinstance(without, str):
        return {place: path for place, path in modules(shape).items() if _fullmatch(without, path)}
    return chosen(raw.names("exclude_modules"), None, shape)


def _fullmatch(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}.", code="invalid_adapter_config") from None


def shortest(met: Mapping[Place, str], layers: Sequence[int] | None, shape: BackboneShape) -> tuple[str, ...]:
    """A last segment where all its modules (in ``layers``) are met, whole paths where only some are."""
    found: list[str] = []
    for name in NAMES:
        paths = [path for (_, other), path in met.items() if other == name]
        found += [name] if paths and list(chosen((name,), layers, shape).values()) == paths else paths
    return tuple(found)


def _ordered(names: Sequence[str]) -> tuple[str, ...]:
    """In the backbone's order, so that equal sets are equal configs; others behind."""
    known = [name for name in NAMES if name in names]
    return (*known, *sorted(set(names) - set(known)))


def by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    """PEFT's rule: the first key that matches the path's end at a dot, as a regular expression."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
