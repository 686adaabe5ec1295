"""A backbone of one's own: the tensors to train are copied into masters, all others are shared with the frozen one."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Decoder
from umbel.backbone.loading import checkpoint_names, torch_dtype
from umbel.core.errors import ConfigError
from umbel.training.precision import Precision
from umbel.training.selection import Selection


def own_backbone(backbone: Backbone, selection: Selection, precision: Precision) -> Backbone:
    """``backbone`` with fresh masters that want gradients for what is selected. It is the same backbone by name and
    identity until it is trained; the frozen tensors lie in the same memory where they have the compute dtype.

    Raises ConfigError (``precision_refused``) where the frozen tensors would not be the checkpoint's in that dtype.
    """
    chosen = chosen_parameters(backbone.decoder, selection)
    _check_unrounded(backbone, precision)
    meta = torch.device("meta")
    decoder = Decoder(backbone.config, precision.compute, meta)
    for name, tensor in backbone.decoder.named_parameters():
        trains = name in chosen
        held = tensor.detach().to(precision.masters, copy=True) if trains else tensor.detach().to(precision.compute)
        _put(decoder, name, nn.Parameter(held, requires_grad=trains))
    wide = torch.promote_types(precision.compute, torch.float32)
    decoder.inverse_frequencies = backbone.decoder.get_buffer("inverse_frequencies").to(wide)
    return replace(backbone, decoder=decoder)


def _check_unrounded(backbone: Backbone, precision: Precision) -> None:
    """What comes out stores changed tensors alone: the others are read from the parent's files, unrounded."""
    loaded, stored = backbone.dtype, torch_dtype("auto", backbone.config.dtype)
    if precision.compute != loaded and torch.promote_types(loaded, stored) != loaded:
        raise ConfigError(
            f"{backbone.name} was rounded from {backbone.config.dtype} when it was loaded; precision {precision.name} "
            "would train beside rounded tensors, and serve beside whole ones.",
            code="precision_refused",
            param="precision",
            hint="leave --dtype out (auto), or take the precision of that dtype",
        )


def chosen_parameters(decoder: Decoder, selection: Selection) -> frozenset[str]:
    """The decoder's own names of what a selection names by a checkpoint's.

    Raises ConfigError where nothing is left to train, or where a pattern wants a part of a fused weight.
    """
    layers = decoder.config.shape.layers
    chosen = set()
    for name, parts in checkpoint_names(decoder).items():
        wanted = [part for part in parts if selection.chooses(part, layers)]
        if wanted and len(wanted) < len(parts):
            raise ConfigError(
                f"train = {selection.text!r} takes {wanted[0]} without its siblings: they are one fused weight here.",
                param="train",
                hint=f"let the pattern match all of {', '.join(part.split('.')[-2] for part in parts)}",
            )
        if wanted:
            chosen.add(name)
    if not chosen:
        raise ConfigError(
            f"train = {selection.text!r} names no tensor of this backbone.",
            param="train",
            hint="patterns are searched in names such as model.layers.3.mlp.down_proj.weight",
        )
    return frozenset(chosen)


def trained_parameters(decoder: Decoder) -> dict[str, Tensor]:
    """By name, in the decoder's own order."""
    return {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}


def trained_tensors(decoder: Decoder) -> Iterator[str]:
    """A checkpoint's names of what is trained."""
    names = checkpoint_names(decoder)
    return (part for name in trained_parameters(decoder) for part in names[name])


def _put(decoder: Decoder, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(path), leaf, parameter)
