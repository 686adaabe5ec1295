"""Fills a decoder whose weights are sharded: each process reads only its own rows of each tensor of the files.

So no process ever holds the whole model, nor one whole tensor of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from umbel.backbone.config import inverse_frequencies
from umbel.backbone.decoder import Decoder, Layer
from umbel.backbone.fingerprint import weight_files
from umbel.backbone.installed import CHANGED_FILE, parent_folder
from umbel.backbone.pieces import Piece, pieces
from umbel.core.errors import ConfigError
from umbel.core.shape import LINEARS, BackboneShape

Fill = Callable[[nn.Module, str], None]
"""fill(module, prefix): all parameters of a part of the decoder, whose names there begin with the prefix."""


@torch.no_grad()
def fill(decoder: Decoder, folder: Path, device: torch.device) -> None:
    """From the meta device to the checkpoint's weights on ``device``, in the decoder's own dtype.

    Raises ConfigError (``backbone_mismatch``, ``backbone_incomplete``).
    """
    decoder.to_empty(device=device)
    frequencies = decoder.get_buffer("inverse_frequencies")
    frequencies.copy_(torch.tensor(inverse_frequencies(decoder.config), dtype=frequencies.dtype))
    with filling(decoder.config.shape, folder) as fill_in:
        fill_in(decoder, "")


@contextmanager
def filling(shape: BackboneShape, folder: Path) -> Iterator[Fill]:
    """Reads a folder's tensors as they are asked for, part by part. Raises as ``fill`` does."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, framework="pt")) for file in _files(folder)]
        tensors = {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118

        def fill_in(module: nn.Module, prefix: str) -> None:
            for name, parameter in module.named_parameters():
                for piece in pieces(shape, prefix + name):
                    _fill_piece(parameter, piece, tensors, folder)

        yield fill_in


def _files(folder: Path) -> list[Path]:
    """Changed tensors come last, in place of their parent's."""
    changed = folder / CHANGED_FILE
    return [*_files(parent_folder(folder)), changed] if changed.is_file() else weight_files(folder)


def note_row_norms(decoder: Decoder) -> None:
    """Gathers one unit after the other, once: DoRA reads the norms of rows outside the layer's own forward."""
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        unit = layer if isinstance(layer, FSDPModule) else decoder  # the root has what is in no unit
        assert isinstance(unit, FSDPModule)
        unit.unshard()
        for name in LINEARS:
            layer.row_norm2(name)
        unit.reshard()


def own_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a tensor, and the row at which that begins. FSDP2 cuts as ``torch.chunk`` does."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    start = 0
    place = tensor.device_mesh.get_coordinate()
    assert place is not None
    for dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0
            chunk = -(-tensor.shape[0] // tensor.device_mesh.size(dim))
            start = min(place[dim] * chunk, tensor.shape[0])
    return tensor.to_local(), start


def _fill_piece(parameter: Tensor, piece: Piece, tensors: Mapping[str, Any], folder: Path) -> None:
    if piece.name not in tensors:
        raise ConfigError(f"{folder.name}: tensor {piece.name} is missing.", code="backbone_incomplete")
    source = tensors[piece.name]
    if tuple(source.get_shape()) != (piece.rows, *parameter.shape[1:]):
        raise ConfigError(
            f"{folder.name}: tensor {piece.name} {source.get_shape()} does not fit config.json.",
            code="backbone_mismatch",
            hint="config.json and weights must come from one checkpoint",
        )
    own, begin = own_rows(parameter)
    first, last = max(begin, piece.start), min(begin + own.shape[0], piece.start + piece.rows)
    if first < last:
        own[first - begin : last - begin].copy_(source[first - piece.start : last - piece.start])
