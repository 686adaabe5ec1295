"""What comes out of a training of the backbone's own tensors: another backbone, with a fingerprint of its own."""

from dataclasses import replace

import torch

from umbel.backbone.backbone import Backbone
from umbel.backbone.fingerprint import fingerprint_of
from umbel.backbone.loading import checkpoint_views

_NAME = 50
"""Most letters of a task's name in the name of its backbone, which has 63 in all."""


@torch.no_grad()
def derive(trained: Backbone, dtype: torch.dtype, *, task: str) -> Backbone:
    """Turns a trained backbone into a frozen one of ``dtype``, in place, and gives it its own name and fingerprint.

    The name tells the task and the first digits of the fingerprint, so that equal bytes have one name.
    """
    for parameter in trained.decoder.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    config = replace(trained.config, dtype=str(dtype).removeprefix("torch."))
    found = fingerprint_of(config, checkpoint_views(trained.decoder).items())
    return replace(
        trained,
        name=f"{task[:_NAME]}.{found.removeprefix('sha256:')[:8]}",
        config=config,
        identity=replace(trained.identity, fingerprint=found),
    )
