"""How far the weights of two adapters lie apart, layer by layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import Fused
from umbel.adapters.sites import LM_HEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """``layers``: (place, ||after - before|| / ||before||) in order, None where before is zero; the output head last.

    0 is equal; two trainings from different seeds are near 1.4. ``why_not`` says why nothing could be compared.
    """

    layers: tuple[tuple[str, float | None], ...] = ()
    why_not: str | None = None


def compare(old: Adapter, new: Adapter) -> WeightChange:
    """Compares what the sites multiply with, so that a rescaled but equal adapter counts as equal."""
    if old.method.name != new.method.name:
        return WeightChange(why_not=f"one is {old.method.name}, the other {new.method.name}.")
    with torch.no_grad():
        a, b = old.weights.fuse(None), new.weights.fuse(None)
    if _shapes(a) != _shapes(b):
        return WeightChange(why_not="they differ in rank, length or targets.")
    places = {key[0]: None for key in a}
    rows = [(_place(layer), _relative(_of(a, layer), _of(b, layer))) for layer in sorted(places, key=_order)]
    if old.head.tensors and _head_shapes(old) == _head_shapes(new):
        rows.append(("output head", _relative(_head(old), _head(new))))
    return WeightChange(layers=tuple(rows))


def _shapes(fused: Fused) -> dict[tuple[int, str], tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in fused.items()}


def _head_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in adapter.head.tensors.items()}


def _head(adapter: Adapter) -> list[Tensor]:
    return [tensor for _, tensor in sorted(adapter.head.tensors.items())]


def _of(fused: Fused, layer: int) -> list[Tensor]:
    return [fused[key] for key in sorted(fused) if key[0] == layer]


def _relative(before: list[Tensor], after: list[Tensor]) -> float | None:
    size = sum(float(a.double().square().sum()) for a in before)
    change = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(before, after, strict=True))
    if size == 0.0:
        return 0.0 if change == 0.0 else None
    return float((change / size) ** 0.5)


def _order(layer: int) -> tuple[bool, int]:
    return layer == LM_HEAD, layer


def _place(layer: int) -> str:
    if layer == LM_HEAD:
        return "lm_head"
    return "embedding" if layer < 0 else str(layer)
