"""Puts adapters on the rows of a batch: what training calls every step, and serving through its slots.

sites = wear(adapters, rows)          rows[i] is the index of row i's adapter, or None for the bare backbone
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter
from umbel.adapters.method import Dropout, Fused, Key, Method, cast, signature
from umbel.adapters.rows import Rows, plan_rows
from umbel.adapters.sites import BARE, Composite, Frozen, Sites
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True)
class Worn:
    """Adapters of one signature that share a stack; ``members[i]`` is the index of the adapter in slot i."""

    method: Method
    shape: BackboneShape
    stack: dict[Key, Tensor]
    members: list[int]
    dropout: float = 0.0


def fuse_all(
    adapters: Sequence[Adapter], layers: Sequence[Frozen] | None = None, *, dtype: torch.dtype | None = None
) -> list[Worn]:
    """Fuses and stacks adapters, one stack per signature (and dropout). Differentiable.

    ``dtype`` is that of the backbone's activations; None keeps the adapters' own.
    """
    groups: dict[Hashable, list[tuple[int, Fused]]] = {}
    for index, adapter in enumerate(adapters):
        fused = cast(adapter.weights, adapter.weights.fuse(layers), dtype)
        if fused:
            key = signature(adapter.method.name, fused), dropout_of(adapter)
            groups.setdefault(key, []).append((index, fused))
    return [_stacked(adapters, members) for members in groups.values()]


def dropout_of(adapter: Adapter) -> float:
    return float(getattr(adapter.weights.config, "dropout", 0.0))


def _stacked(adapters: Sequence[Adapter], members: list[tuple[int, Fused]]) -> Worn:
    first = adapters[members[0][0]]
    stack = {key: torch.stack([fused[key] for _, fused in members]) for key in members[0][1]}
    indices = [index for index, _ in members]
    return Worn(first.method, first.weights.shape, stack, indices, dropout_of(first))


def wear(
    worn: Sequence[Worn],
    rows: Sequence[int | None],
    *,
    device: torch.device | str = "cpu",
    dropout_keys: Tensor | None = None,
    least: int = 1,
) -> Sites:
    """Sites for a batch whose row i wears adapter ``rows[i]``; ``dropout_keys`` [B] (or [B,T]) turns dropout on."""
    parts: list[Sites] = []
    for group in worn:
        slot_of = {member: slot for slot, member in enumerate(group.members)}
        here = [(row, slot_of[index]) for row, index in enumerate(rows) if index in slot_of]
        if not here:
            continue
        keyed = dropout_keys is not None and group.dropout > 0.0
        dropout = Dropout(group.dropout, dropout_keys) if keyed and dropout_keys is not None else None
        layout = plan_rows(
            [row for row, _ in here], [slot for _, slot in here], batch=len(rows), device=device, least=least
        )
        parts += [batch_of(group.method, group.stack, laid, group.shape, dropout) for laid in layout]
    return Composite(parts) if parts else BARE


def batch_of(
    method: Method, stack: Mapping[Key, Tensor], rows: Rows, shape: BackboneShape, dropout: Dropout | None = None
) -> Sites:
    return method.batch.kind_for(stack)(stack, rows, shape, dropout)
