"""A backbone as one process of a group holds it: whole under ddp, its own shards under fsdp."""

from pathlib import Path

import torch

from umbel.backbone.backbone import Backbone
from umbel.backbone.config import read_config
from umbel.backbone.fingerprint import Identity, identity
from umbel.backbone.loading import load_backbone, torch_dtype
from umbel.backbone.shards import fill, note_row_norms
from umbel.backbone.tokenizer import load_tokenizer
from umbel.backbone.units import meta_decoder
from umbel.training.distributed.group import Group, own_device
from umbel.training.distributed.strategy import Strategy, mesh_of, reach_every_layer, shard


def load_frozen(
    folder: Path, strategy: Strategy, group: Group, *, dtype: str = "auto", device: str = "cpu", name: str | None = None
) -> Backbone:
    """For adapters: never trained itself. Sharded, it comes from the meta device and no process holds it whole."""
    device = own_device(device)
    if not strategy.sharded:
        return load_backbone(folder, dtype=dtype, device=device, name=name)
    config, place = read_config(folder), torch.device(device)
    decoder = meta_decoder(config, torch_dtype(dtype, config.dtype))
    shard(decoder, strategy, mesh_of(strategy, group.size, place))
    fill(decoder, folder, torch.device("cpu") if strategy.offload else place)
    note_row_norms(decoder)
    reach_every_layer(decoder)
    return Backbone(
        name=name or folder.name,
        folder=folder,
        config=config,
        decoder=decoder,
        tokenizer=load_tokenizer(folder),
        identity=_identity(folder, group),
    )


def _identity(folder: Path, group: Group) -> Identity:
    """Hashes all weights: once is enough for all."""
    found = group.from_first(identity(folder) if group.leads else None)
    assert found is not None
    return found
