"""Attention of a flat step through the KV cache: first one token of each decoding row, then chunks of prefilling rows.

Shape letters here:  R decoding rows   T tokens of a chunk   N query heads   G key/value heads   n = N/G
                     L places looked at   D head width   X independent products
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.backbone.native import Kernels
from umbel.core.shape import BackboneShape
from umbel.engine.kv import KVCache
from umbel.engine.native_attention import NativeDecode, NativePrompt, tell_rows
from umbel.engine.span import Span


class CachedAttention:
    """Writes the step's keys and values, then attends to each row's own places up to its position.

    Rows 0..R-1 of the batch are decoding rows at ``positions``, in ``slots``: 0..R-1 in any order (None: in this one).
    Spans follow. Rows beyond are padding and receive the first row's context.
    """

    def __init__(
        self,
        cache: KVCache,
        shape: BackboneShape,
        positions: Sequence[int],
        spans: Sequence[Span],
        slots: Sequence[int] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self.cache, self.shape, self.spans, self.rows = cache, shape, spans, len(positions)
        self.kv_heads, self.group = shape.kv_heads, shape.heads // shape.kv_heads
        self.scale = shape.head_dim**-0.5
        self.device = cache.slabs.device
        for place, position in enumerate(positions):
            cache.touch(place if slots is None else slots[place], position + 1)
        for span in spans:
            cache.touch(span.slot, span.start + span.count)
        self.native: NativeDecode | None = None
        if positions and kernels is not None:
            own = range(self.rows) if slots is None else slots
            self.native = NativeDecode(kernels, cache, shape, positions, own)
        elif positions:
            at = torch.tensor(positions, device=self.device)
            self.length = self.cache.look(max(positions) + 1)
            slot = torch.tensor(range(self.rows) if slots is None else slots, device=self.device)
            self.places = cache.places(slot, at)
            self.slots = None if slots is None or list(slots) == list(range(self.rows)) else slot
            self.order = slot.argsort()
            at = at.index_select(0, self.order)
            self.hidden = (torch.arange(self.length, device=self.device) > at[:, None])[:, None, None]
        self.native_prompt = NativePrompt(kernels, cache, shape, spans) if spans and kernels is not None else None
        self.masked = [(span, self._causal(span)) for span in spans] if kernels is None else []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B,N,1,D], k and v [B,G,1,D] -> [B,N,1,D]."""
        if not self.spans and q.shape[0] == self.rows:
            return self._decode(layer, q, k, v)
        context = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.rows:
            at = slice(0, self.rows)
            context[at] = self._decode(layer, q[at], k[at], v[at])
        if self.native_prompt is not None:
            self.native_prompt(layer, q, k, v, context)
        for span, mask in self.masked:
            at = slice(span.at, span.at + span.count)
            context[at] = self._chunk(layer, span, mask, q[at], k[at], v[at])
        used = self.rows + sum(span.count for span in self.spans)
        context[used:] = context[:1]
        return context

    def told(self, qkv: Tensor, context: Tensor) -> tuple[ctypes.Structure | None, ctypes.Structure | None]:
        """What the kernels for decoding rows and for prompts are told, where they read rotated qkv [B,(N+2G)D] and
        write context [B,ND], in the cache's first layer. None where there are no such rows."""
        parts = [None if part is None else part.told for part in (self.native, self.native_prompt)]
        for told in parts:
            if told is not None:
                tell_rows(told, self.cache, self.shape, qkv, context)
        return parts[0], parts[1]

    def _decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(layer, q, k, v)
        self.cache.write(layer, self.places, k, v)
        keys, values = (slab[: self.rows].flatten(0, 1)[:, : self.length] for slab in self.cache.layer(layer))
        ordered = q if self.slots is None else q.index_select(0, self.order)
        grouped = ordered.reshape(self.rows * self.kv_heads, self.group, -1)
        context = self._attend(grouped, keys, values, self.hidden, (self.rows, self.kv_heads, -1, self.length))
        context = context.reshape(q.shape)
        return context if self.slots is None else context.index_select(0, self.slots)

    def _chunk(self, layer: int, span: Span, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (slab[span.slot] for slab in self.cache.layer(layer))
        here = slice(span.start, span.start + span.count)
        keys[:, here], values[:, here] = k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1)
        length, width = mask.shape[-1], q.shape[-1]
        grouped = q.reshape(span.count, self.kv_heads, self.group, width).permute(1, 2, 0, 3)
        grouped = grouped.reshape(self.kv_heads, -1, width)
        shape = (self.kv_heads, -1, span.count, length)
        context = self._attend(grouped, keys[:, :length], values[:, :length], mask, shape)
        return context.view(self.kv_heads, self.group, span.count, width).permute(2, 0, 1, 3).reshape(q.shape)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, masked: tuple[int, ...]) -> Tensor:
        """q [X,m,D], keys and values [X,L,D] -> [X,m,D]. ``hidden`` broadcasts over the scores seen as ``masked``."""
        rows = q.shape[1]
        if rows == 1:  # never a product of a lone row (correctness rule 2)
            q = q.expand(-1, 2, -1)
        scores = torch.bmm(q, keys.transpose(1, 2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(self.scale)
        scores.view(masked).masked_fill_(hidden, float("-inf"))  # a fill, not a sum: freed keys may be anything
        return torch.bmm(F.softmax(scores, -1).to(values.dtype), values)[:, :rows]

    def _causal(self, span: Span) -> Tensor:
        """[T, L] true where a key is hidden."""
        length = self.cache.visible(span.start + span.count)
        at = torch.arange(span.start, span.start + span.count, device=self.device)
        return torch.arange(length, device=self.device) > at[:, None]
