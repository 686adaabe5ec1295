"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned embeddings in places reserved before the text.

The batch builder reserves V places (any token id) and ``embed`` overwrites them, so the sequence length never changes
inside the decoder; loss, echo and pooling skip those places.

Shape letters here:  S slots   M rows x tokens of a slot   V virtual tokens   H hidden
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from umbel.adapters.method import Batch, Fused, Method, Run, Weights
from umbel.adapters.methods.prefix import read_sizes
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import EMBEDDING, Ends, Frozen, Sites
from umbel.core.errors import ConfigError
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """Number of virtual tokens and where they start."""

    length: int = 20
    """Virtual tokens."""
    init_text: str = ""
    """Start from this text's own embeddings, repeated or cut to ``length`` tokens; empty starts from noise."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, got {self.length}.", param="length")


class PromptWeights(Weights):
    """``prompt_embeddings`` [V, H]."""

    config: PromptConfig

    @classmethod
    def expected(cls, config: PromptConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeddings": (config.length, shape.hidden)}

    @classmethod
    def fresh(cls, config: PromptConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """Small normal values, about the size of a Llama's own embeddings."""
        size = (config.length, shape.hidden)
        return cls(config, shape, {"prompt_embeddings": torch.randn(size, generator=generator) * 0.02})

    @property
    def num_virtual(self) -> int:
        return self.config.length

    def initialise(self, layers: Sequence[Frozen], run: Run, ends: Ends | None = None) -> None:
        if self.config.init_text:
            seen = _SeenEmbeddings()
            run(seen, self.config.length, self.config.init_text)
            self.tensors["prompt_embeddings"].data.copy_(seen.found)

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        return {(EMBEDDING, "prompt"): self.tensors["prompt_embeddings"]}


class _SeenEmbeddings(Sites):
    """Listens at the embeddings and keeps the first row's, [V, H]."""

    found: Tensor

    def embed(self, x: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        self.found = x[0].detach().to(torch.float32)
        return x


class PromptBatch(Batch):
    """Overwrites the embeddings at positions below V."""

    in_answers = False

    def embed(self, x: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        prompt_SVH = self.rows.of(self.stack[EMBEDDING, "prompt"])
        x_SMH, places_SM = self.rows.take(x), self.rows.tokens(positions)
        length = prompt_SVH.shape[1]
        index = places_SM.clamp(max=length - 1)[..., None].expand(-1, -1, x.shape[-1])
        virtual = prompt_SVH.gather(1, index).to(x.dtype)
        return self.rows.put(x, torch.where((places_SM < length)[..., None], virtual, x_SMH))


def read_peft(raw: PeftConfig, shape: BackboneShape) -> PromptConfig:
    read_sizes(raw, shape, token_dim=shape.hidden, heads=shape.heads)
    raw.harmless(["prompt_tuning_init", "prompt_tuning_init_text"])
    return PromptConfig(length=raw.integer("num_virtual_tokens"))


def write_peft(config: PromptConfig, shape: BackboneShape) -> dict[str, Any]:
    return {
        "num_virtual_tokens": config.length,
        "token_dim": shape.hidden,
        "num_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def same_config(read: PromptConfig, own: PromptConfig) -> bool:
    return read.length == own.length


METHOD = Method(
    name="prompt",
    config=PromptConfig,
    weights=PromptWeights,
    batch=PromptBatch,
    peft_type="PROMPT_TUNING",
    prefix="",
    head_prefix="base_model.",
    zero_start=False,
    learning_rate=1e-2,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    summary="learned embeddings before the text",
)
