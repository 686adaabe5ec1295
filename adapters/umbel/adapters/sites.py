"""The whole surface between the backbone and adapters: named places where an adapter may act.

Shape letters here:  B rows   T tokens   H hidden   N query heads   G key/value heads   D head width
                     P virtual keys of a prefix     in, out  features of the site's linear

``site`` is one of the fused projections ``qkv``, ``o``, ``gate_up``, ``down``, or ``lm_head`` (layer ``LM_HEAD``).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

SITES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "lm_head": ("lm_head",),
}
"""The linears of each fused site, in the order of its output features."""

LM_HEAD = -1
"""The layer index under which the ``lm_head`` site is called."""
EMBEDDING = -2
"""The layer index under which fused tensors of the ``embed`` site are kept."""


class Frozen(Protocol):
    """A layer's frozen weights. Readable only inside that layer's own forward, or on an unsharded layer (FSDP2)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of what ``apply_frozen`` takes."""
        ...

    def apply_frozen(self, name: str, x: Tensor, *, bias: bool = True) -> Tensor:
        """The bare linear ``name`` (``q_proj`` ... ``down_proj``): [..., in] -> [..., out]."""
        ...

    def row_norm2(self, name: str) -> Tensor:
        """[out], at least fp32: squared norm of each row of the weight (DoRA)."""
        ...

    def bias(self, site: str) -> Tensor | None:
        """[out] of the fused site."""
        ...


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a frozen tensor, sharded (FSDP2's DTensor) or not; outside of forward passes."""
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = tensor if gather is None else gather()
    return whole


class Ends(Protocol):
    """The frozen matrices outside of the layers."""

    def matrix(self, name: str) -> Tensor:
        """``embed_tokens`` or ``lm_head``, [V, H]; one and the same where they are tied."""
        ...


class Sites:
    """One method's adapters in one batch. This base changes nothing; a method overrides the sites where it acts."""

    def embed(self, x: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """[B,T,H] embeddings of the tokens [B,T] at positions [B,T] -> [B,T,H]. May write into x. Prompts, LoRA."""
        return x

    def past(self, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys and values that a row starts with: K, V [B,G,P,D] unrotated, and their number [B]. Prefix tuning.

        Training concatenates them, serving copies them into the row's KV at admission.
        """
        return None

    def input(self, layer: int, site: str, x: Tensor) -> Tensor:
        """[B,T,in] -> [B,T,in], before the site's linear. IA3 on down_proj."""
        return x

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        """x [B,T,in] entering the site's linear, y [B,T,out] leaving it -> y. May write into y. LoRA, DoRA, IA3."""
        return y

    def attend(self, layer: int, q: Tensor, context: Tensor, frozen: Frozen) -> Tensor:
        """Rotated queries and attention output, both [B,N,T,D], before o_proj -> [B,N,T,D]. LLaMA-Adapter."""
        return context

    def after(self, layer: int, part: str, x: Tensor, h: Tensor) -> Tensor:
        """Input x and output h of the block ``attention`` or ``mlp``, [B,T,H], before the residual add. Bottleneck."""
        return h


class Composite(Sites):
    """Several methods in one batch. Which part acts where is listed once, so an unused site costs one empty loop."""

    def __init__(self, parts: Sequence[Sites]) -> None:
        def acting(site: str) -> list[Sites]:
            return [part for part in parts if getattr(type(part), site) is not getattr(Sites, site)]

        self.parts = list(parts)
        self._embed = acting("embed")
        self._past = acting("past")
        self._input = acting("input")
        self._linear = acting("linear")
        self._attend = acting("attend")
        self._after = acting("after")

    @property
    def in_layers(self) -> list[Sites]:
        """Parts that act between the embedding and the last norm; keys of a prefix lie in the row's cache already."""
        acting = {id(part) for parts in (self._input, self._linear, self._attend, self._after) for part in parts}
        return [part for part in self.parts if id(part) in acting]

    @property
    def embeds(self) -> bool:
        """Whether some part acts on embeddings."""
        return bool(self._embed)

    def embed(self, x: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        for part in self._embed:
            x = part.embed(x, positions, tokens)
        return x

    def past(self, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
        found = [past for part in self._past if (past := part.past(layer)) is not None]
        return _longest_past(found) if found else None

    def input(self, layer: int, site: str, x: Tensor) -> Tensor:
        for part in self._input:
            x = part.input(layer, site, x)
        return x

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        for part in self._linear:
            y = part.linear(layer, site, x, y, frozen)
        return y

    def attend(self, layer: int, q: Tensor, context: Tensor, frozen: Frozen) -> Tensor:
        for part in self._attend:
            context = part.attend(layer, q, context, frozen)
        return context

    def after(self, layer: int, part: str, x: Tensor, h: Tensor) -> Tensor:
        for acting in self._after:
            h = acting.after(layer, part, x, h)
        return h


def _longest_past(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Joins prefixes of several lengths: rows differ, so padded sums are unions."""
    longest = max(keys.shape[2] for keys, _, _ in found)

    def padded(x: Tensor) -> Tensor:
        missing = longest - x.shape[2]
        return x if missing == 0 else pad(x, (0, 0, 0, missing))

    keys = sum((padded(k) for k, _, _ in found[1:]), padded(found[0][0]))
    values = sum((padded(v) for _, v, _ in found[1:]), padded(found[0][1]))
    lengths = sum((n for _, _, n in found[1:]), found[0][2])
    return keys, values, lengths


BARE = Composite(())
"""Every row wears nothing: the backbone itself."""
