"""An adapter made ready for serving: fused with the frozen weights, cast, checked, and not yet in a stack."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter
from umbel.adapters.head import Head
from umbel.adapters.method import Fused, cast, signature
from umbel.adapters.sites import LM_HEAD, Frozen
from umbel.backbone.backbone import Backbone
from umbel.core.contract import OutputHead
from umbel.core.errors import AdapterRefused
from umbel.engine.pages import can_reserve
from umbel.engine.rooms import rooms

if TYPE_CHECKING:
    from umbel.engine.slots import Stack


@dataclass(slots=True, eq=False)
class Resident:
    """One adapter in the engine. Its digest is its identity; the name is for logs."""

    digest: str
    adapter: Adapter
    """What it is; its weights hold no tensors any more."""
    head: Head
    signature: Hashable
    nbytes: int
    past_length: int
    """Keys of its prefix."""
    num_virtual: int
    """Places of its soft prompt."""
    adapts_lm_head: bool
    head_only: bool
    """It changes nothing below its output head: what it reads are the bare backbone's hidden states."""
    fused: Fused | None
    """Until it has a slot; the stack holds the only copy afterwards."""
    stack: "Stack | None" = None
    slot: int = -1
    worn: int = 0
    """Rows that wear it now: it is pinned."""
    last_used: int = 0
    """Tick of the bank's own clock."""

    @property
    def generates(self) -> bool:
        return self.adapter.contract.output_head is OutputHead.GENERATE


@torch.no_grad()
def make_resident(digest: str, adapter: Adapter, backbone: Backbone) -> Resident:
    """Raises AdapterRefused for another backbone's adapter or one that holds NaN or infinity."""
    if adapter.backbone != backbone.fingerprint:
        raise AdapterRefused(
            f"adapter {adapter.name or digest} is bound to backbone {adapter.backbone}, "
            f"this server runs {backbone.name} {backbone.fingerprint}.",
            code="wrong_backbone",
            hint="serve it with the backbone it was trained on: umbel serve --backbone",
        )
    layers: Sequence[Frozen] = list(backbone.decoder.layers)  # type: ignore[arg-type]
    fused = cast(adapter.weights, adapter.weights.fuse(layers), backbone.dtype)
    fused = {key: tensor.detach().to(backbone.device) for key, tensor in fused.items()}
    tensors = {name: tensor.detach().to(backbone.device) for name, tensor in adapter.head.tensors.items()}
    _check_finite(adapter.name or digest, [*fused.values(), *tensors.values()])
    head = type(adapter.head)(adapter.head.config, adapter.head.hidden, tensors)
    fused = _apart(fused)
    return Resident(
        digest=digest,
        adapter=_emptied(adapter, head),
        head=head,
        signature=signature(adapter.method.name, fused),
        nbytes=sum(t.numel() * t.element_size() for t in [*fused.values(), *tensors.values()]),
        past_length=adapter.weights.num_past,
        num_virtual=adapter.weights.num_virtual,
        adapts_lm_head=any(layer == LM_HEAD for layer, _ in fused),
        head_only=not (fused or adapter.weights.num_past or adapter.weights.num_virtual),
        fused=fused,
    )


def _apart(fused: Fused) -> Fused:
    """In pages of their own, which go back when a stack has taken its copy: those of a few adapters that were loaded
    during one step would leave holes in the heap."""
    if not fused or not all(can_reserve(tensor.device) for tensor in fused.values()):
        return fused
    lone = rooms(fused, 1)
    lone.need(1)
    for key, tensor in fused.items():
        lone.tensors[key][0] = tensor
    return {key: tensor[0] for key, tensor in lone.tensors.items()}


def _emptied(adapter: Adapter, head: Head) -> Adapter:
    """Without what was read from its files: that would lie in memory beside the fused tensors."""
    weights = copy.copy(adapter.weights)
    weights.tensors = {}
    return replace(adapter, weights=weights, head=head)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Sums, 40 times faster than ``isfinite``, are finite only where every number is; where one is not, large numbers
    may have overflown, and each is looked at."""
    sums = [tensor.sum() for tensor in tensors if tensor.is_floating_point()]
    if not sums or bool(torch.stack([total.double() for total in sums]).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _check_finite(name: str, tensors: Sequence[Tensor]) -> None:
    if not all_finite(tensors):
        raise AdapterRefused(
            f"adapter {name} holds NaN or infinite weights in the served dtype.",
            code="non_finite_weights",
            hint="train it again with a lower learning rate",
        )
