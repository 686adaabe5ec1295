"""An adapter made ready for serving: fused with the frozen weights, cast, checked, and not yet in a stack."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from umbel.adapters.adapter import Adapter
from umbel.adapters.head import Head
from umbel.adapters.method import Fused, Key, cast, signature
from umbel.adapters.sites import LM_HEAD, Frozen
from umbel.adapters.tensorfile import all_finite
from umbel.backbone.backbone import Backbone
from umbel.backbone.pages import can_reserve, reserve_once
from umbel.core.contract import OutputHead
from umbel.core.courtesy import give_way
from umbel.core.errors import AdapterRefused

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
    give_way()
    fused = cast(adapter.weights, adapter.weights.fuse(layers), backbone.dtype)
    fused = {key: tensor.detach().to(backbone.device) for key, tensor in fused.items()}
    tensors = {name: tensor.detach().to(backbone.device, copy=True) for name, tensor in adapter.head.tensors.items()}
    give_way()
    gathered = _gather(fused)
    give_way()
    _check_finite(adapter.name or digest, [*(flat for _, flat in gathered.values()), *tensors.values()])
    head = type(adapter.head)(adapter.head.config, adapter.head.hidden, tensors)
    own, weights = _emptied(adapter, head), adapter.weights
    give_way()
    return resident_of(
        digest, own, _apart(fused, gathered), past_length=weights.num_past, num_virtual=weights.num_virtual
    )


def resident_of(digest: str, adapter: Adapter, fused: Fused, *, past_length: int, num_virtual: int) -> Resident:
    """Of an adapter whose weights hold no tensors, and whose output head is on the backbone's device."""
    tensors = [*fused.values(), *adapter.head.tensors.values()]
    return Resident(
        digest=digest,
        adapter=adapter,
        head=adapter.head,
        signature=signature(adapter.method.name, fused),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        past_length=past_length,
        num_virtual=num_virtual,
        adapts_lm_head=any(layer == LM_HEAD for layer, _ in fused),
        head_only=not (fused or past_length or num_virtual),
        fused=fused,
    )


def _gather(fused: Fused) -> dict[torch.dtype, tuple[list[Key], Tensor]]:
    """All tensors of one dtype in a row [numbers]. A load has few calls: each waits for the thread that decodes."""
    found = {}
    for dtype in {tensor.dtype for tensor in fused.values()}:
        keys = [key for key, tensor in fused.items() if tensor.dtype == dtype]
        found[dtype] = keys, _in_a_row([fused[key].reshape(-1) for key in keys])
        give_way()
    return found


def _in_a_row(flat: list[Tensor]) -> Tensor:
    """In pages that go back when a stack has taken its copy: those of a few adapters that were loaded during one step
    would leave holes in the heap."""
    nbytes = sum(tensor.nbytes for tensor in flat)
    if not (nbytes and can_reserve(flat[0].device)):
        return torch.cat(flat)
    return torch.cat(flat, out=torch.frombuffer(reserve_once(nbytes), dtype=flat[0].dtype))


def _apart(fused: Fused, gathered: dict[torch.dtype, tuple[list[Key], Tensor]]) -> Fused:
    found: Fused = {}
    for keys, flat in gathered.values():
        views = _unflatten_dense_tensors(flat, [fused[key] for key in keys])  # type: ignore[no-untyped-call]
        found |= zip(keys, views, strict=True)
    return {key: found[key] for key in fused}


def _emptied(adapter: Adapter, head: Head) -> Adapter:
    """Without what was read from its files: that would lie in memory beside the fused tensors."""
    weights = copy.copy(adapter.weights)
    weights.tensors = {}
    return replace(adapter, weights=weights, head=head)


def _check_finite(name: str, tensors: Sequence[Tensor]) -> None:
    if not all_finite(tensors):
        raise AdapterRefused(
            f"adapter {name} holds NaN or infinite weights in the served dtype.",
            code="non_finite_weights",
            hint="train it again with a lower learning rate",
        )
