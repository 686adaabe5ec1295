"""Tensors that several processes hold in parts, on disk by torch.distributed.checkpoint, and between part and whole.

Its metadata file is a pickle, so it stays in a run's own folder: never imported, exported or served.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from umbel.backbone.shards import own_rows


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each process writes its own parts; nothing at all where there are none."""
    if tensors:
        dcp.save(dict(tensors), checkpoint_id=str(folder))


def read(folder: Path, wanted: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
    """Puts those of ``wanted`` that were saved in shards ``into`` a mapping, in parts as their examples are."""
    if not folder.is_dir():
        return
    saved = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    found = {
        key: torch.zeros_like(tensor, dtype=saved[key].properties.dtype)  # type: ignore[union-attr]
        for key, tensor in wanted.items()
        if key in saved
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # one process reads what several wrote
        dcp.load(found, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
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
