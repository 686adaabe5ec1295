"""The numbers of a backbone that adapters, estimates and refusals need; no tensors."""

from dataclasses import dataclass

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven linears of a Llama block, by PEFT's last path segment, in order of use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneShape:
    """Sizes of a Llama-family decoder; all counts, no units."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = True
    """Whether lm_head is the embedding matrix."""
    biases: tuple[str, ...] = ()
    """The linears of ``LINEARS`` that have a bias."""

    def linear(self, name: str) -> tuple[int, int]:
        """(in, out) features of one linear, named as in ``LINEARS`` or ``lm_head``."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            "lm_head": (self.hidden, self.vocab),
        }[name]
