"""How queries meet keys: in a whole right-padded batch (training, evaluation), or through a KV cache (the engine).

Shape letters here:  B rows   T tokens   N query heads   G key/value heads   D head width   P virtual keys
"""

from typing import Protocol

import torch
from torch import Tensor

from umbel.adapters.sites import Sites
from umbel.adapters.wide_products import attention, bmm


class Attention(Protocol):
    """Given rotated q [B,N,T,D], rotated k and v [B,G,T,D] of one layer, the context [B,N,T,D]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class WholeAttention:
    """Causal attention over whole rows, padded on the right. Prefix rows see their virtual keys before all tokens.

    Padding needs no mask: a query sees only keys at or before its own place, and padding comes after every real one.
    ``documents`` [B,T] names the document at each place of packed rows: a query sees only its own document's keys.
    """

    def __init__(self, sites: Sites, documents: Tensor | None = None) -> None:
        self.sites = sites
        self.own = None if documents is None else _own_documents(documents)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = self.sites.past(layer)
        learns = q.requires_grad or k.requires_grad or (past is not None and past[0].requires_grad)
        if learns and q.device.type == "cpu" and q.shape[2] <= _DIRECT:
            return _direct(q, k, v, past, self.own)
        grouped = q.shape[1] != k.shape[1]
        if past is None and self.own is None:
            return attention(q, k, v, is_causal=True, enable_gqa=grouped)
        k, v, mask = _seen(k, v, past, self.own)
        return attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


_DIRECT = 1024
"""Up to so many tokens plain products are used where a gradient is wanted on CPU: the fused kernel's backward pass is
ten times slower at 16 tokens and three times at 512 (torch 2.13, two cores); beyond, its memory is what counts."""


Past = tuple[Tensor, Tensor, Tensor] | None
"""K, V [B,G,P,D] that rows start with, and their number [B]."""


def _direct(q: Tensor, k: Tensor, v: Tensor, past: Past, own: Tensor | None) -> Tensor:
    """Attention as two products per KV head, all its query heads in one; differentiable."""
    rows, heads, tokens, width = q.shape
    k, v, visible = _seen(k, v, past, own)
    groups, seen = rows * k.shape[1], k.shape[2]
    folded = (q * width**-0.5).reshape(groups, -1, width)
    scores = bmm(folded, k.reshape(groups, seen, width).transpose(1, 2)).view(rows, heads, tokens, seen)
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), -1)
    return bmm(weights.view(groups, -1, seen), v.reshape(groups, seen, width)).view(rows, heads, tokens, width)


def _seen(k: Tensor, v: Tensor, past: Past, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values with those that rows start with, and which of them each query sees ([T,T] or [B,1,T,P+T])."""
    causal = _causal(k.shape[2], k.device) if own is None else own
    if past is None:
        return k, v, causal
    keys, values, lengths = past
    k, v = torch.cat([keys.to(k.dtype), k], 2), torch.cat([values.to(v.dtype), v], 2)
    return k, v, _prefix_mask(lengths, keys.shape[2], causal)


def _causal(tokens: int, device: torch.device) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def _own_documents(documents: Tensor) -> Tensor:
    """[B,T] -> [B,1,T,T] true where a key is of the query's own document and not after it. Padding sees padding."""
    same = documents[:, :, None] == documents[:, None, :]
    return (same & _causal(documents.shape[1], documents.device))[:, None]


def _prefix_mask(lengths: Tensor, longest: int, causal: Tensor) -> Tensor:
    """[B,1,T,P+T] true where a key is visible: the row's own virtual keys, and tokens as ``causal`` has them."""
    rows, tokens = lengths.shape[0], causal.shape[-1]
    virtual = torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]
    return torch.cat([virtual[:, None, None, :].expand(rows, 1, tokens, longest), causal.expand(rows, 1, -1, -1)], 3)
