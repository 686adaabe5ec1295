"""How far the weights of two versions of the home lie apart."""

from typing import TYPE_CHECKING

from umbel.adapters.difference import WeightChange, compare
from umbel.adapters.peft_io import load_adapter
from umbel.backbone.config import parse_config
from umbel.core.errors import NotFound

if TYPE_CHECKING:
    from umbel.registry.registry import Registry


def weight_change(registry: "Registry", before: str, after: str) -> WeightChange:
    """Compares what the sites multiply with, so that a rescaled but equal adapter counts as equal."""
    first, second = registry.versions.get(before), registry.versions.get(after)
    if first.method != second.method:
        return WeightChange(why_not=f"one is {first.method}, the other {second.method}.")
    if first.backbone != second.backbone:
        return WeightChange(why_not="they are made for different backbones.")
    try:
        shape = parse_config(registry.backbones.get(first.backbone).config).shape
    except NotFound:
        return WeightChange(why_not="their backbone is not in this home.")
    old, new = (load_adapter(registry.fetch(version.digest), shape) for version in (first, second))
    return compare(old, new)
