"""Loads a backbone once from a Hugging Face folder: frozen, fused, on any device and in any float dtype."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from umbel.backbone.backbone import Backbone
from umbel.backbone.config import BackboneConfig, read_config
from umbel.backbone.decoder import Decoder, Layer, frequencies
from umbel.backbone.fingerprint import Identity, fingerprint, identity, weight_files
from umbel.backbone.footprint import give_back_freed, keep_few_products
from umbel.backbone.installed import CHANGED_FILE, SOURCE_FILE, Source, parent_folder
from umbel.backbone.linears import DenseLinear, OneDnnLinear, PackedLinear, can_pack
from umbel.backbone.native import Kernels, NativeEmbedding, NativeWeight, native_linear
from umbel.backbone.pages import lay_together
from umbel.backbone.pieces import pieces
from umbel.backbone.quantised import QUANTISED_SITES, QuantisedLinear, check_form, quantised
from umbel.backbone.tokenizer import load_tokenizer
from umbel.core.errors import ConfigError, Conflict
from umbel.core.forms import Form
from umbel.core.shape import LINEARS

_PACK_ROWS = 32
"""Batch that the packed layout is tuned for; it stays correct for every other."""


def load_backbone(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    packed: bool = False,
    kernels: Kernels | None = None,
    name: str | None = None,
    quantise: Form | None = None,
) -> Backbone:
    """Loads config, weights and tokenizer. ``packed`` reorders CPU weights for serving; such a backbone cannot train.

    ``kernels`` stand in for torch where they fit a packed backbone (bf16 on a CPU). ``quantise`` holds the layers'
    linears in 8 or 4 bits; adapters train and answer on them. Raises NotFound or ConfigError naming the file or field,
    or why this form is not to be had.
    """
    config = read_config(folder)
    place = torch.device(device)
    if packed:
        keep_few_products()
    wanted = torch_dtype(dtype, config.dtype)
    if quantise is None:
        decoder = load_decoder(folder, config, wanted, place)
    else:
        check_form(quantise, {config.shape.linear(name)[0] for name in LINEARS})
        decoder = load_quantised(folder, config, wanted, place, quantise)
    backbone = Backbone(
        name=name or folder.name,
        folder=folder,
        config=config,
        decoder=decoder,
        tokenizer=load_tokenizer(folder),
        identity=_checked_identity(folder),
        quantised=quantise,
    )
    if packed:
        make_servable(backbone, kernels)
        give_back_freed()
    return backbone


def make_servable(backbone: Backbone, kernels: Kernels | None, *, compact: bool = True) -> None:
    """Packs the weights, with ``kernels`` where they fit. Nothing can train on the backbone afterwards."""
    decoder = backbone.decoder
    fitting = kernels if kernels is not None and kernels.fit(decoder.compute_dtype, backbone.device) else None
    pack(decoder, kernels=fitting, compact=compact)
    if fitting is not None:
        decoder.use(fitting)
        lay_together(decoder, PackedLinear)
    backbone.kernels = fitting


def _checked_identity(folder: Path) -> Identity:
    """Raises Conflict (``backbone_damaged``) where one that was trained here has not the bytes of its training."""
    found = identity(folder)
    wanted = Source.read(folder).fingerprint if (folder / SOURCE_FILE).is_file() else None
    if wanted is not None and wanted != found.fingerprint:
        raise Conflict(
            f"{folder.name} was {wanted} when it was trained, and is {found.fingerprint} now: its files were changed.",
            code="backbone_damaged",
            hint=f"put them back from a backup, or umbel backbones rm {folder.name} and train it again",
        )
    return found


def torch_dtype(dtype: str, checkpoint: str) -> torch.dtype:
    """``auto`` is the checkpoint's own."""
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    wanted = checkpoint if dtype == "auto" else names.get(dtype, dtype)
    if wanted not in names.values():
        raise ConfigError(f"dtype {dtype!r} is not one.", param="dtype", hint=f"use auto, {', '.join(names)}")
    found = getattr(torch, wanted)
    assert isinstance(found, torch.dtype)
    return found


def load_decoder(folder: Path, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    decoder = Decoder(config, dtype, device)
    targets = checkpoint_views(decoder)
    for name, tensor in tensors_of(folder):
        if unused(name, config):
            continue
        target = targets.pop(name, None)
        if target is None or target.shape != tensor.shape:
            raise ConfigError(
                f"{folder.name}: tensor {name} {list(tensor.shape)} does not fit config.json.",
                code="backbone_mismatch",
                hint="config.json and weights must come from one checkpoint",
            )
        target.copy_(tensor)
    if targets:
        raise ConfigError(
            f"{folder.name}: {len(targets)} tensors are missing, the first is {min(targets)}.",
            code="backbone_incomplete",
        )
    return decoder


@torch.no_grad()
def load_quantised(
    folder: Path, config: BackboneConfig, dtype: torch.dtype, device: torch.device, form: Form
) -> Decoder:
    """Layer by layer, so that never more than one layer is held as the checkpoint has it."""
    from umbel.backbone.shards import filling

    decoder = Decoder(config, dtype, torch.device("meta"))
    decoder.inverse_frequencies = frequencies(config, dtype, device)
    with filling(config.shape, folder) as fill:
        for name, part in [(f"layers.{i}", layer) for i, layer in enumerate(decoder.layers)] + _ends(decoder):
            part.to_empty(device=device)
            fill(part, f"{name}.")
            for site in QUANTISED_SITES if isinstance(part, Layer) else ():
                setattr(part, site, quantised(getattr(part, site), form))
    return decoder


def _ends(decoder: Decoder) -> list[tuple[str, nn.Module]]:
    """What is never quantised."""
    ends = {"embedding": decoder.embedding, "norm": decoder.norm, "lm_head": decoder.lm_head}
    return [(name, part) for name, part in ends.items() if part is not None]


def unused(name: str, config: BackboneConfig) -> bool:
    """Whether a checkpoint's tensor is none of the decoder's: a copy of tied embeddings, or a buffer that old ones
    carry (config.json decides)."""
    return (name == "lm_head.weight" and config.shape.tied) or name.endswith("rotary_emb.inv_freq")


def tensors_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint. Changed tensors stand in for their parent's, which come in the child's dtype.

    Raises Conflict (``parent_changed``) where the parent is not the one that they were trained from.
    """
    if not (folder / CHANGED_FILE).is_file():
        for file in weight_files(folder):
            yield from _read(file)
        return
    parent, config = _checked_parent(folder), read_config(folder)
    changed = dict(_read(folder / CHANGED_FILE))
    dtype = torch_dtype("auto", config.dtype)
    for name, tensor in tensors_of(parent):
        if not unused(name, config):
            yield name, changed.pop(name) if name in changed else tensor.to(dtype)
    if changed:
        raise ConfigError(
            f"{folder.name}: {CHANGED_FILE} holds {min(changed)}, which {parent.name} has not.",
            code="backbone_mismatch",
        )


def _checked_parent(folder: Path) -> Path:
    wanted, parent = Source.read(folder).parent, parent_folder(folder)
    assert wanted is not None
    if (found := fingerprint(parent)) != wanted.fingerprint:
        raise Conflict(
            f"{folder.name} was trained from {wanted.name} as {wanted.fingerprint}; {parent} is {found}.",
            code="parent_changed",
            hint=f"bring the old one back under its name: umbel backbones rm {wanted.name}, then umbel pull backbone",
        )
    return parent


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield name, opened.get_tensor(name)


def read_matrix(folder: Path, name: str) -> Tensor:
    """``embed_tokens`` or ``lm_head`` [V, H] of a folder, as the checkpoint has it, without loading a decoder."""
    name = "lm_head.weight" if name == "lm_head" and not read_config(folder).shape.tied else "model.embed_tokens.weight"
    return next(tensor for found, tensor in tensors_of(folder) if found == name)


@torch.no_grad()
def checkpoint_views(decoder: Decoder) -> dict[str, Tensor]:
    """Views into the decoder's own tensors, by the names that a Hugging Face checkpoint gives them: of a dense one."""
    assert not any(isinstance(module, QuantisedLinear | PackedLinear) for module in decoder.modules())
    shape = decoder.config.shape
    return {
        piece.name: parameter.data[piece.start : piece.start + piece.rows]
        for name, parameter in decoder.named_parameters()
        for piece in pieces(shape, name)
    }


def checkpoint_names(decoder: Decoder) -> dict[str, tuple[str, ...]]:
    """The decoder's parameters by their own names, each with the tensors of a checkpoint that it holds, in order."""
    shape = decoder.config.shape
    return {name: tuple(piece.name for piece in pieces(shape, name)) for name, _ in decoder.named_parameters()}


@torch.no_grad()
def pack(decoder: Decoder, rows: int = _PACK_ROWS, kernels: Kernels | None = None, *, compact: bool = True) -> None:
    """Replaces the layers' linears by packed ones, layer by layer, so that never two copies of all are held;
    and lm_head where ``kernels`` have a linear. ``compact``: theirs in three quarters of the bytes.

    Row norms (DoRA needs them) are taken first; the other weights are gone afterwards. What no kernel here can hold
    stays as it is.
    """
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        found = {site: _packed(getattr(layer, site), rows, kernels, compact) for site in QUANTISED_SITES}
        for name in LINEARS if any(found.values()) else ():
            layer.row_norm2(name)
        for site, packed in found.items():
            if packed is not None:
                setattr(layer, site, packed)
    weight = decoder.embedding.weight if decoder.lm_head is None else decoder.lm_head.weight
    if kernels is not None and (lm_head := native_linear(weight, None, kernels, compact=compact)) is not None:
        _pack_lm_head(decoder, lm_head)


def _pack_lm_head(decoder: Decoder, packed: NativeWeight) -> None:
    """Where it is tied, embeddings are looked up in it, so that they are held once."""
    if decoder.lm_head is None:
        decoder.embedding = NativeEmbedding(packed)
    decoder.lm_head = packed


def _packed(linear: nn.Module, rows: int, kernels: Kernels | None, compact: bool) -> nn.Module | None:
    if isinstance(linear, QuantisedLinear):
        return linear.packed(kernels)
    if not isinstance(linear, DenseLinear):
        return None
    if kernels is not None:
        native = native_linear(linear.weight, linear.bias, kernels, compact=compact)
        if native is not None:
            return native
    if can_pack(linear.weight.dtype, linear.weight.device):
        return OneDnnLinear(linear, rows)
    return None
