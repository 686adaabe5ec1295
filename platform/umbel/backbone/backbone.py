"""A loaded backbone: the decoder, its tokenizer and its identity."""

from dataclasses import dataclass
from pathlib import Path

import torch

from umbel.backbone.config import BackboneConfig
from umbel.backbone.decoder import Decoder
from umbel.backbone.fingerprint import Identity
from umbel.backbone.tokenizer import Tokenizer
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
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take over all layers."""
        return 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * self.dtype.itemsize
