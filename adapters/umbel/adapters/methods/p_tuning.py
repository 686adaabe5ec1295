"""P-tuning (Liu et al. 2021, arXiv 2103.10385): prompt tuning whose embeddings come out of a small network.

Only the network's output is served, exactly as in prompt tuning; the network is kept beside the export so that a run
can go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.adapters.method import Fused, Method, Weights
from umbel.adapters.methods.prefix import read_sizes
from umbel.adapters.methods.prompt import PromptBatch
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import EMBEDDING, Frozen
from umbel.core.errors import ConfigError
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PTuningConfig:
    """Number of virtual tokens and the width of the network that makes them."""

    length: int = 20
    """Virtual tokens."""
    encoder_hidden: int | None = None
    """Width of the two hidden layers; None is the backbone's hidden size."""
    encoder: bool = True
    """Whether the network is there; PEFT saves only its output, so an imported adapter has none."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, got {self.length}.", param="length")


class PTuningWeights(Weights):
    """``prompt_embeddings`` [V, H], and the network under ``encoder.``: an embedding and three linears."""

    config: PTuningConfig

    @classmethod
    def expected(cls, config: PTuningConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        hidden, inner = shape.hidden, config.encoder_hidden or shape.hidden
        served: dict[str, tuple[int, ...]] = {"prompt_embeddings": (config.length, hidden)}
        if not config.encoder:
            return served
        return {
            **served,
            "encoder.embedding.weight": (config.length, hidden),
            "encoder.mlp_head.0.weight": (inner, hidden),
            "encoder.mlp_head.0.bias": (inner,),
            "encoder.mlp_head.2.weight": (inner, inner),
            "encoder.mlp_head.2.bias": (inner,),
            "encoder.mlp_head.4.weight": (hidden, inner),
            "encoder.mlp_head.4.bias": (hidden,),
        }

    @classmethod
    def fresh(cls, config: PTuningConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """Embedding N(0, 1), linears scaled to their inputs."""
        tensors = {}
        for name, size in cls.expected(config, shape).items():
            scale = 1.0 if "embedding" in name else 0.0 if name.endswith("bias") else size[-1] ** -0.5
            tensors[name] = torch.randn(size, generator=generator) * scale
        made = cls(config, shape, tensors)
        made.bake()
        return made

    @property
    def num_virtual(self) -> int:
        return self.config.length

    @property
    def trainable(self) -> list[str]:
        return [name for name in self.tensors if not self.config.encoder or name.startswith("encoder.")]

    @torch.no_grad()
    def bake(self) -> None:
        if self.config.encoder:
            self.tensors["prompt_embeddings"] = self._encoded().detach()

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        trained = layers is None and self.config.encoder
        return {(EMBEDDING, "prompt"): self._encoded() if trained else self.tensors["prompt_embeddings"]}

    def _encoded(self) -> Tensor:
        x = self.tensors["encoder.embedding.weight"]
        for i in (0, 2, 4):
            x = F.linear(x, self.tensors[f"encoder.mlp_head.{i}.weight"], self.tensors[f"encoder.mlp_head.{i}.bias"])
            x = x if i == 4 else F.relu(x)
        return x


def read_peft(raw: PeftConfig, shape: BackboneShape) -> PTuningConfig:
    read_sizes(raw, shape, token_dim=shape.hidden, heads=shape.heads)
    kind = "encoder_reparameterization_type"
    raw.harmless([kind, "encoder_num_layers", "encoder_dropout", "encoder_hidden_size"])
    return PTuningConfig(length=raw.integer("num_virtual_tokens"), encoder=False)


def write_peft(config: PTuningConfig, shape: BackboneShape) -> dict[str, Any]:
    return {
        "num_virtual_tokens": config.length,
        "token_dim": shape.hidden,
        "num_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_transformer_submodules": 1,
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": config.encoder_hidden or shape.hidden,
    }


def same_config(read: PTuningConfig, own: PTuningConfig) -> bool:
    return read.length == own.length


def extra_tensors(config: PTuningConfig) -> Callable[[str], bool]:
    return lambda name: name.startswith("encoder.")


METHOD = Method(
    name="p_tuning",
    config=PTuningConfig,
    weights=PTuningWeights,
    batch=PromptBatch,
    peft_type="P_TUNING",
    prefix="",
    head_prefix="base_model.",
    zero_start=False,
    learning_rate=2e-3,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    extra_tensors=extra_tensors,
    summary="learned embeddings before the text, made by a small network",
)
