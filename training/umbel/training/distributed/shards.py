"""Tensors that several processes hold in parts, on disk by torch.distributed.checkpoint, and between part and whole.

Its metadata file is a pickle, so it stays in a run's own folder: never imported, exported or served.
"""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from umbel.backbone.shards import own_rows


def begin_writing(folder: Path, tensors: Mapping[str, Tensor]) -> "Future[Any] | None":
    """Each process writes its own parts, copied now, while training goes on; None where there are none.

    What the processes tell each other about it goes through a group of its own: theirs is in use meanwhile.
    """
    if not tensors:
        return None
    copies = {key: like(tensor, own_rows(tensor)[0].detach().clone()) for key, tensor in tensors.items()}
    talking = _talking(dist.group.WORLD)
    found = dcp.async_save(copies, checkpoint_id=str(folder), process_group=talking, async_stager=_Copied())  # type: ignore[attr-defined]
    assert isinstance(found, Future)
    return found


class _Copied(BlockingAsyncStager):
    """What is handed over is a copy already; torch's own fails at a DTensor that was read back."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict


@cache
def _talking(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Made once, by all processes of ``world`` at the same time; gloo, since it is about files."""
    found: dist.ProcessGroup = dist.new_group(backend="gloo")
    return found


def read(folder: Path, wanted: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
    """Puts those of ``wanted`` that were saved in shards ``into`` a mapping, in parts as their examples are."""
    if not folder.is_dir():
        return
    saved = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata  # type: ignore[attr-defined]
    found = {
        key: torch.zeros_like(tensor, dtype=saved[key].properties.dtype)  # type: ignore[union-attr]
        for key, tensor in wanted.items()
        if key in saved
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # one process reads what several wrote
        dcp.load(found, checkpoint_id=str(folder), no_dist=not dist.is_initialized())  # type: ignore[attr-defined]
    into.update(found)


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """A part of this process's own as a tensor of all, cut as ``tensor`` is."""
    if not isinstance(tensor, DTensor):
        return part
    own = part.to(tensor.to_local().device)
    return DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def part(tensor: Tensor, found: Tensor) -> Tensor:
    """What this process holds of ``found`` where ``tensor`` is cut; ``found`` is whole or cut likewise."""
    if isinstance(found, DTensor):
        return found.to_local()
    if not isinstance(tensor, DTensor):
        return found
    own, start = own_rows(tensor)
    return found[start : start + own.shape[0]]


@torch.no_grad()
def put(tensor: Tensor, found: Tensor) -> Tensor:
    """Copies this process's part of ``found`` into ``tensor``, and returns it."""
    own_rows(tensor)[0].copy_(part(tensor, found))
    return tensor
