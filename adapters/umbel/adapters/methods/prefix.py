"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190): learned keys and values before the text, in every layer.

    attention(q, [P_k ; k], [P_v ; v])         prefix keys are not rotated; the text's first position is V

The paper trains the prefix through a small network and keeps only its output; ``projection`` does so. What is served
is always ``prompt_embeddings`` [V, L * 2 * G * D], PEFT's layout: layer, then key or value, then head, then feature.

No initial prefix is a no-op: zero keys score zero and still take softmax mass. A prefix that starts from a text's own
keys and values (``init_text``) is the mildest.

Shape letters here:  B rows   V virtual keys   L layers   G key/value heads   D head width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.adapters.method import Batch, Fused, Method, Run, Weights
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import Ends, Frozen, Sites
from umbel.core.errors import ConfigError
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixConfig:
    """Length of the prefix and how it is parametrised while it is trained."""

    length: int = 30
    """Virtual keys per layer."""
    projection: bool = False
    """Train it through a two-layer network (embedding, tanh, linear)."""
    projection_hidden: int | None = None
    """Inner width of that network; None is the width of one layer's keys."""
    init_text: str = ""
    """Start from the keys and values of this text, repeated or cut to ``length`` tokens. Not with ``projection``."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, got {self.length}.", param="length")
        if self.projection and self.init_text:
            raise ConfigError("init_text and projection exclude each other.", param="init_text", hint="choose one")


class PrefixWeights(Weights):
    """``prompt_embeddings``, and with ``projection`` the network that makes it, under ``encoder.``."""

    config: PrefixConfig

    @classmethod
    def expected(cls, config: PrefixConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        width = shape.kv_heads * shape.head_dim
        sizes: dict[str, tuple[int, ...]] = {"prompt_embeddings": (config.length, shape.layers * 2 * width)}
        if config.projection:
            inner = config.projection_hidden or width
            sizes["encoder.embedding.weight"] = (config.length, width)
            sizes["encoder.transform.0.weight"] = (inner, width)
            sizes["encoder.transform.0.bias"] = (inner,)
            sizes["encoder.transform.2.weight"] = (shape.layers * 2 * width, inner)
            sizes["encoder.transform.2.bias"] = (shape.layers * 2 * width,)
        return sizes

    @classmethod
    def fresh(cls, config: PrefixConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """Small normal values; PEFT's N(0, 1) drowns the text it stands before."""
        tensors = {
            name: torch.randn(size, generator=generator) * (0.02 if name == "prompt_embeddings" else size[-1] ** -0.5)
            for name, size in cls.expected(config, shape).items()
        }
        made = cls(config, shape, tensors)
        made.bake()
        return made

    @property
    def num_past(self) -> int:
        return self.config.length

    @property
    def trainable(self) -> list[str]:
        return [name for name in self.tensors if not self.config.projection or name.startswith("encoder.")]

    def initialise(self, layers: Sequence[Frozen], run: Run, ends: Ends | None = None) -> None:
        if not self.config.init_text:
            return
        seen = _SeenKeys(self.shape)
        run(seen, self.config.length, self.config.init_text)
        ordered = [seen.found[layer] for layer in range(self.shape.layers)]
        flat = torch.stack(ordered, 1).flatten(1)
        self.tensors["prompt_embeddings"].data.copy_(flat)

    @torch.no_grad()
    def bake(self) -> None:
        if self.config.projection:
            self.tensors["prompt_embeddings"] = self._encoded().detach()

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """K and V of each layer, [G, V, D]."""
        encoded = self.config.projection and layers is None
        flat = self._encoded() if encoded else self.tensors["prompt_embeddings"]
        shape = self.shape
        heads = flat.view(self.config.length, shape.layers, 2, shape.kv_heads, shape.head_dim)
        keyed = heads.permute(1, 2, 3, 0, 4)
        return {
            (layer, what): keyed[layer, index] for layer in range(shape.layers) for index, what in enumerate(("K", "V"))
        }

    def _encoded(self) -> Tensor:
        t = self.tensors
        inner = F.linear(
            t["encoder.embedding.weight"], t["encoder.transform.0.weight"], t["encoder.transform.0.bias"]
        ).tanh()
        return F.linear(inner, t["encoder.transform.2.weight"], t["encoder.transform.2.bias"])


class _SeenKeys(Sites):
    """Listens at the qkv site and keeps each layer's unrotated keys and values of the first row, [V, 2 * G * D]."""

    def __init__(self, shape: BackboneShape) -> None:
        self.queries = shape.heads * shape.head_dim
        self.found: dict[int, Tensor] = {}

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        if site == "qkv":
            self.found[layer] = y[0, :, self.queries :].detach().to(torch.float32)
        return y


class PrefixBatch(Batch):
    """Hands each row its own keys and values; the caller puts them before the row's."""

    def past(self, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
        keys, values = self.stack[layer, "K"], self.stack[layer, "V"]
        ones = torch.full((keys.shape[0],), keys.shape[2], dtype=torch.long, device=keys.device)
        return self.rows.spread(keys), self.rows.spread(values), self.rows.spread(ones)


def read_peft(raw: PeftConfig, shape: BackboneShape) -> PrefixConfig:
    """PEFT saves the network's output only, so an imported prefix is a plain one."""
    read_sizes(raw, shape, token_dim=shape.kv_heads * shape.head_dim, heads=shape.kv_heads)
    raw.harmless(["prefix_projection", "init_weights", "encoder_hidden_size"])
    return PrefixConfig(length=raw.integer("num_virtual_tokens"))


def read_sizes(raw: PeftConfig, shape: BackboneShape, *, token_dim: int, heads: int) -> None:
    """PEFT's prompt methods repeat the backbone's sizes; other sizes belong to another backbone."""
    raw.only("token_dim", token_dim)
    raw.only("num_layers", shape.layers)
    raw.only("num_attention_heads", heads, shape.heads)
    raw.only("num_transformer_submodules", 1)
    raw.harmless(["tokenizer_name_or_path", "tokenizer_kwargs"])


def write_peft(config: PrefixConfig, shape: BackboneShape) -> dict[str, Any]:
    return {
        "num_virtual_tokens": config.length,
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_layers": shape.layers,
        "num_attention_heads": shape.kv_heads,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        "prefix_projection": False,
    }


def same_config(read: PrefixConfig, own: PrefixConfig) -> bool:
    return read.length == own.length


def extra_tensors(config: PrefixConfig) -> Callable[[str], bool]:
    return lambda name: name.startswith("encoder.")


METHOD = Method(
    name="prefix",
    config=PrefixConfig,
    weights=PrefixWeights,
    batch=PrefixBatch,
    peft_type="PREFIX_TUNING",
    prefix="",
    head_prefix="base_model.",
    zero_start=False,
    learning_rate=5e-3,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    extra_tensors=extra_tensors,
    summary="learned keys and values before the text in every layer",
)
