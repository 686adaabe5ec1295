"""A loaded backbone: the decoder, its tokenizer and its identity."""

from dataclasses import dataclass
from pathlib import Path

import torch

from umbel.backbone.config import BackboneConfig
from umbel.backbone.decoder import Decoder
from umbel.backbone.fingerprint import Identity
from umbel.backbone.linears import OneDnnLinear
from umbel.backbone.native import Kernels
from umbel.backbone.tokenizer import Tokenizer
from umbel.core.forms import Form
from umbel.core.shape import BackboneShape


@dataclass(slots=True, eq=False)
class Backbone:
    """One copy in memory, whatever is served or trained on it."""

    name: str
    folder: Path
    config: BackboneConfig
    decoder: Decoder
    tokenizer: Tokenizer
    identity: Identity
    quantised: Form | None = None
    """Form of the layers' linears in memory. The fingerprint is that of the files, whatever the form."""
    kernels: Kernels | None = None
    """What stands in for torch in a step, where the backbone was loaded for serving with them."""

    @property
    def shape(self) -> BackboneShape:
        return self.config.shape

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of every weight that is not being trained."""
        return self.decoder.compute_dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device

    @property
    def bytes(self) -> int:
        """Of the weights in memory, in whatever form; row norms that DoRA asked for are beside them."""
        packed = [module for module in self.decoder.modules() if isinstance(module, OneDnnLinear)]
        held = sum(tensor.nbytes for tensor in [*self.decoder.parameters(), *self.decoder.buffers()])
        return held + sum(linear.d_in * linear.d_out for linear in packed) * self.dtype.itemsize

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take over all layers."""
        return 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * self.dtype.itemsize
