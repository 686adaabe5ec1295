"""Dropout whose mask is a pure function of what it belongs to, drawn in one tensor operation.

The mask of (adapter seed, step, example, layer, site, token, feature) is a hash of those numbers, so it does not
depend on the batch around the row and is the same again when activations are recomputed.
"""

import torch
from torch import Tensor

from umbel.adapters.method import Dropout


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 with wrap-around (Steele et al. 2014, "Fast splittable PRNGs")."""
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def row_keys(seeds: Tensor, step: Tensor, examples: Tensor) -> Tensor:
    """[B] int64 keys from adapter seed, step and the example's own index, each [B] int64."""
    return mix(mix(mix(seeds + _GOLDEN) + step) + examples)


def drop(x: Tensor, dropout: Dropout, keys: Tensor, layer: int, place: int) -> Tensor:
    """Inverted dropout of x [S, C*T, F] with keys [S, C*T] (one per row and token)."""
    if dropout.p == 0.0:
        return x
    features = torch.arange(x.shape[-1], device=x.device) * _GOLDEN
    here = mix(keys + _signed((layer * 64 + place + 1) * 0x632BE59BD9B4E019))
    uniform = _shift(mix(here[..., None] + features), 40).to(torch.float32) * 2.0**-24
    keep = (uniform >= dropout.p).to(x.dtype)
    return x * keep / (1.0 - dropout.p)


def token_keys(keys: Tensor, tokens: int) -> Tensor:
    """[B] row keys -> [B, T], one per token of the row's own numbering; [B, T] keys of tokens stay as they are."""
    if keys.dim() == 2:
        return keys
    return token_key(keys[:, None], torch.arange(tokens, device=keys.device)[None, :])


def token_key(keys: Tensor, places: Tensor) -> Tensor:
    """Row keys and places in their rows, of shapes that broadcast -> keys of these tokens."""
    return mix(keys + places)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
