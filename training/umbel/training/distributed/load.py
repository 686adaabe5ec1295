"""A backbone as one process of a group holds it: whole under ddp, its own shards under fsdp."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from umbel.backbone.backbone import Backbone
from umbel.backbone.config import read_config
from umbel.backbone.decoder import Decoder
from umbel.backbone.fingerprint import Identity, identity
from umbel.backbone.loading import load_backbone, torch_dtype
from umbel.backbone.shards import fill, note_row_norms
from umbel.backbone.tokenizer import load_tokenizer
from umbel.backbone.units import meta_decoder
from umbel.core.errors import ConfigError
from umbel.core.forms import Form
from umbel.training.distributed.group import Group, own_device
from umbel.training.distributed.strategy import Strategy, add_up, mesh_of, quantised_shards, reach_every_layer, shard
from umbel.training.precision import Precision


def load_frozen(
    folder: Path,
    strategy: Strategy,
    group: Group,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    name: str | None = None,
    quantise: Form | None = None,
) -> Backbone:
    """For adapters: never trained itself. Sharded, it comes from the meta device and no process holds it whole.

    Raises ConfigError (``quantised_shards``) for a quantised one under fsdp.
    """
    device = own_device(device)
    if not strategy.sharded:
        return load_backbone(folder, dtype=dtype, device=device, name=name, quantise=quantise)
    if quantise is not None:
        raise quantised_shards(quantise)
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


def load_own(
    backbone: Backbone, chosen: Collection[str], precision: Precision, strategy: Strategy, group: Group
) -> Backbone:
    """``backbone`` again, from its folder, in parts whose ``chosen`` parameters are masters that want gradients.

    Under ddp each process is a part of its own: the same engine, with all weights in it. Raises ConfigError for fp16,
    whose scaled losses are of one device.
    """
    if precision.scaled:
        raise ConfigError("fp16-mixed trains on one device only.", param="precision", hint="use bf16-mixed")
    decoder = meta_decoder(backbone.config, precision.compute)
    for name, parameter in decoder.named_parameters():
        if name in chosen:
            parameter.data = parameter.data.to(precision.masters)
            parameter.requires_grad_()
    policy = MixedPrecisionPolicy(param_dtype=precision.compute, reduce_dtype=precision.reduce)
    shard(decoder, strategy, mesh_of(strategy, group.size, backbone.device), policy)
    add_up(decoder)
    fill(decoder, backbone.folder, torch.device("cpu") if strategy.offload else backbone.device)
    return replace(backbone, decoder=decoder)


@torch.no_grad()
def gathered(backbone: Backbone, dtype: torch.dtype, group: Group) -> Backbone:
    """The first process gets a whole copy in CPU memory, in ``dtype``, tensor by tensor; others keep their parts."""
    whole = Decoder(backbone.config, dtype, torch.device("cpu")) if group.leads else None
    for name, parameter in backbone.decoder.named_parameters():
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if whole is not None:
            whole.get_parameter(name).copy_(full)
    return backbone if whole is None else replace(backbone, decoder=whole)


def _identity(folder: Path, group: Group) -> Identity:
    """Hashes all weights: once is enough for all."""
    found = group.from_first(identity(folder) if group.leads else None)
    assert found is not None
    return found
