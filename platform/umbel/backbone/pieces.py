"""Which tensors of a Hugging Face checkpoint lie, one below the other, in each tensor of the decoder."""

from dataclasses import dataclass

from umbel.adapters.sites import SITES
from umbel.core.shape import BackboneShape

_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a checkpoint: rows ``start`` to ``start + rows`` of the decoder's."""

    name: str
    start: int
    rows: int


def pieces(shape: BackboneShape, name: str) -> list[Piece]:
    """Of the decoder's parameter ``name``, such as ``layers.0.qkv.weight``, in the order of its rows."""
    whole = {
        "embedding.weight": ("model.embed_tokens.weight", shape.vocab),
        "lm_head.weight": ("lm_head.weight", shape.vocab),
        "norm.weight": ("model.norm.weight", shape.hidden),
    }
    if name in whole:
        theirs, rows = whole[name]
        return [Piece(theirs, 0, rows)]
    _, layer, module, kind = name.split(".")
    prefix = f"model.layers.{layer}"
    if module in _NORMS:
        return [Piece(f"{prefix}.{_NORMS[module]}.weight", 0, shape.hidden)]
    found, start = [], 0
    for linear in SITES[module]:
        block = "self_attn" if module in ("qkv", "o") else "mlp"
        rows = shape.linear(linear)[1]
        found.append(Piece(f"{prefix}.{block}.{linear}.{kind}", start, rows))
        start += rows
    return found
