"""Many LoRA adapters in one batch: the products that ``methods/lora.py`` describes, for slots of equal shapes.

Shape letters here:  S slots   M rows x tokens of a slot   D features in   E features out   R rank   P blocks
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from umbel.adapters import lora_ends
from umbel.adapters.dropout import drop, token_keys
from umbel.adapters.method import Batch, Dropout, Key
from umbel.adapters.products import product
from umbel.adapters.rows import Rows
from umbel.adapters.sites import EMBEDDING, LM_HEAD, SITES, Frozen
from umbel.core.shape import BackboneShape

_ENDS = ("table", "ids", "rows")
_BIASES = tuple(f".{kind}" for kind in lora_ends.BIASES)
_PLACE = {"qkv": 0, "o": 1, "gate_up": 2, "down": 3, "lm_head": 4}


@dataclass(frozen=True, slots=True, eq=False)
class _LowRank:
    """What a batch's slots have at one site; views of the stack."""

    down: Tensor
    """[S, D, sum R]."""
    ups: list[tuple[str, Tensor, slice, slice]]
    """Each adapted linear: its name, B [S, R, E], its columns of x A, and its columns of the site."""
    rescaled: bool
    """Whether any of them has DoRA's magnitudes."""
    blocks: Tensor | None
    """[S, P, R, E]: the Bs of all linears of the site in serving, instead of ``ups``."""


class LoraBatch(Batch):
    """Two products per slot and site: x A, then each linear's own B into its columns of y.

    In training the Bs of a site are one block-diagonal matrix instead: a gradient of columns written one after another
    would copy all of y for each of them.
    """

    def __init__(self, stack: Mapping[Key, Tensor], rows: Rows, shape: BackboneShape, dropout: Dropout | None) -> None:
        super().__init__(stack, rows, shape, dropout)
        self._kept: dict[tuple[int, str], _LowRank | None] = {}

    @classmethod
    def kind_for(cls, stack: Mapping[Key, Tensor]) -> type[Batch]:
        layer, what = next(iter(stack))
        return LoraEverywhere if layer == EMBEDDING or what in _ENDS or what.endswith(_BIASES) else cls

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        low = self._low_rank(layer, site)
        if low is None:
            return y
        x_SMD = self._dropped(self.rows.take(x), layer, site, x.shape[1])
        h_SMR = product(x_SMD, low.down)
        if torch.is_grad_enabled() and not low.rescaled:
            return self.rows.add(y, product(h_SMR, self._diagonal(low, site)))
        if low.blocks is not None:
            return self._add_blocks(y, h_SMR, low.blocks, len(SITES[site]))
        for name, b_SRE, part, own in low.ups:
            delta = product(h_SMR[..., part], b_SRE)
            scale = self._scale(layer, name, low.down[..., part], b_SRE, frozen) if low.rescaled else None
            y = self.rows.add(y, delta, own) if scale is None else self._rescaled(y, delta, own, scale, site, frozen)
        return y

    def _low_rank(self, layer: int, site: str) -> "_LowRank | None":
        """Kept as long as the same rows wear the same slots: a decode step cuts no tensor anew."""
        try:
            return self._kept[layer, site]
        except KeyError:
            found = self._kept[layer, site] = self._cut(layer, site)
            return found

    def _cut(self, layer: int, site: str) -> "_LowRank | None":
        a_SRD = self.stack.get((layer, f"{site}.A"))
        if a_SRD is None:
            return None
        ups, rank, column = [], 0, 0
        for name in SITES[site]:
            width = self.shape.linear(name)[1]
            if (b_SRE := self.stack.get((layer, f"{name}.B"))) is not None:
                part = slice(rank, rank + b_SRE.shape[1])
                ups.append((name, self.rows.of(b_SRE), part, slice(column, column + width)))
                rank = part.stop
            column += width
        blocks = self.stack.get((layer, f"{site}.blocks"))
        return _LowRank(
            self.rows.of(a_SRD).transpose(1, 2),
            ups,
            self._rescales(layer, site),
            None if blocks is None else self.rows.of(blocks),
        )

    def _add_blocks(self, y: Tensor, h_SMR: Tensor, b_SPRE: Tensor, linears: int) -> Tensor:
        """One product for all linears of a site; the first of them may be several blocks wide (q over k and v)."""
        slots, blocks, rank, width = b_SPRE.shape
        h_SLMR = h_SMR.view(slots, -1, linears, rank).transpose(1, 2)
        if blocks > linears:
            h_SLMR = torch.cat([h_SLMR[:, :1].expand(-1, blocks - linears, -1, -1), h_SLMR], 1)
        delta = product(h_SLMR.reshape(slots * blocks, -1, rank), b_SPRE.reshape(slots * blocks, rank, width))
        return self.rows.add_blocks(y, delta.view(slots, blocks, -1, width))

    def _diagonal(self, low: "_LowRank", site: str) -> Tensor:
        """[S, sum R, E of the whole site]; linears that are not adapted have zero columns."""
        width = sum(self.shape.linear(name)[1] for name in SITES[site])
        blocks = [pad(b_SRE, (own.start, width - own.stop)) for _, b_SRE, _, own in low.ups]
        return torch.cat(blocks, 1) if len(blocks) > 1 else blocks[0]

    def _rescales(self, layer: int, site: str) -> bool:
        """Whether any linear of the site has DoRA's magnitudes."""
        kinds = ("magnitude", "scale")
        return any((layer, f"{name}.{kind}") in self.stack for name in SITES[site] for kind in kinds)

    def _scale(self, layer: int, name: str, a_SDR: Tensor, b_SRE: Tensor, frozen: Frozen) -> Tensor | None:
        """DoRA's m / ||W + s B A||, [S, 1, E]; None for plain LoRA."""
        if (layer, f"{name}.scale") in self.stack:
            return self.rows.of(self.stack[layer, f"{name}.scale"])
        magnitude = self.stack.get((layer, f"{name}.magnitude"))
        if magnitude is None:
            return None
        norm = adapted_norm(name, a_SDR.transpose(-1, -2), b_SRE, frozen)
        return self.rows.of(magnitude) / norm[:, None, :]

    def _rescaled(self, y: Tensor, delta: Tensor, own: slice, scale: Tensor, site: str, frozen: Frozen) -> Tensor:
        """b + m (W x + s B A x) at one linear's columns, computed in at least fp32 and rounded once."""
        bias = frozen.bias(site)
        own_y = self.rows.take(y[..., own]).to(scale.dtype)
        if bias is None:
            return self.rows.put(y, (own_y + delta) * scale, own)
        shift = bias[own].to(scale.dtype)
        return self.rows.put(y, shift + scale * (own_y - shift + delta), own)

    def _dropped(self, x_SMD: Tensor, layer: int, site: str, tokens: int) -> Tensor:
        if self.dropout is None:
            return x_SMD
        keys = self.rows.tokens(token_keys(self.dropout.keys, tokens))
        return drop(x_SMD, self.dropout, keys, layer, _PLACE[site])


class LoraEverywhere(LoraBatch):
    """With embeddings, token rows, full copies or biases; plain stacks are never asked for them."""

    def embed(self, x: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        return lora_ends.embed(self.stack, self.rows, x, tokens)

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        if layer == LM_HEAD:
            y = lora_ends.own_lm_head(self.stack, self.rows, x, y)
        y = super().linear(layer, site, x, y, frozen)
        if layer == LM_HEAD:
            y = lora_ends.own_logits(self.stack, self.rows, x, y)
        return lora_ends.shifted(self.stack, self.rows, layer, site, y, frozen, self.shape)


@torch.no_grad()
def adapted_norm(name: str, a_RD: Tensor, b_RE: Tensor, frozen: Frozen) -> Tensor:
    """Norms of the rows of W + s B A, [..., E], in at least fp32; ``b_RE`` carries the scale."""
    norm2 = frozen.row_norm2(name)
    wa_RE = frozen.apply_frozen(name, a_RD.to(frozen.dtype), bias=False).to(norm2.dtype)
    a_RD, b_RE = a_RD.to(norm2.dtype), b_RE.to(norm2.dtype)
    squares = (a_RD @ a_RD.transpose(-1, -2)) @ b_RE
    return (norm2 + 2 * (wa_RE * b_RE).sum(-2) + (squares * b_RE).sum(-2)).clamp_min(0.0).sqrt()
