"""LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): zero-initialised gated attention over adaption prompts.

    context_h += gate_h * softmax(q_h (W_k P)_h / sqrt D) (W_v P)_h          in the top layers, before W_o

q is rotated, the prompt's keys are not: a prompt has no place in the text. The softmax runs over the prompt alone, in
at least fp32, apart from the text's own. PEFT's AdaptionPrompt has one gate per layer; the authors have one per head,
which is our flagged extension ``per_head_gate``. Where the backbone's W_o has a bias, PEFT adds it twice; we do not.

Shape letters here:  B rows   S slots   M rows x tokens of a slot   P prompt length   H hidden
                     N query heads   G key/value heads   R = N / G   D head width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from umbel.adapters.method import Batch, Fused, Method, Weights
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.products import product
from umbel.adapters.sites import Frozen
from umbel.core.errors import ConfigError
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaAdapterConfig:
    """How long the prompts are and how many of the top layers have one."""

    length: int = 10
    """Prompt vectors per layer."""
    layers: int | None = None
    """Adapted layers, counted from the top; None is all, so the default fits any depth."""
    per_head_gate: bool = False
    """One gate per query head instead of one per layer. PEFT cannot load such an adapter's gates."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length must be at least 1, got {self.length}.", param="length")


def adapted_layers(config: LlamaAdapterConfig, shape: BackboneShape) -> range:
    count = shape.layers if config.layers is None else config.layers
    if not 1 <= count <= shape.layers:
        raise ConfigError(
            f"layers = {count}, but this backbone has {shape.layers} layers.",
            code="too_many_layers",
            param="layers",
            hint=f"use 1 to {shape.layers}, or leave it out for all",
        )
    return range(shape.layers - count, shape.layers)


class LlamaAdapterWeights(Weights):
    """``adaption_prompt`` [1, P, H] and ``adaption_gate`` [1] (or [1, N, 1, 1]) for each adapted layer."""

    config: LlamaAdapterConfig
    wide = frozenset({"gate"})

    @classmethod
    def expected(cls, config: LlamaAdapterConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        for layer in adapted_layers(config, shape):
            sizes[f"{_path(layer)}.adaption_prompt"] = (1, config.length, shape.hidden)
            sizes[f"{_path(layer)}.adaption_gate"] = (1, shape.heads, 1, 1) if config.per_head_gate else (1,)
        return sizes

    @classmethod
    def fresh(cls, config: LlamaAdapterConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """Prompts N(0, 1), gates zero: the first answer is the backbone's."""
        tensors = {
            name: torch.zeros(size) if name.endswith("gate") else torch.randn(size, generator=generator)
            for name, size in cls.expected(config, shape).items()
        }
        return cls(config, shape, tensors)

    @property
    def lowest_layer(self) -> int:
        return adapted_layers(self.config, self.shape).start

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """Gate [N, 1, 1] or [1, 1, 1]; in serving the prompt's keys and values [G, P, D], in training the prompt."""
        fused: Fused = {}
        for layer in adapted_layers(self.config, self.shape):
            prompt = self.tensors[f"{_path(layer)}.adaption_prompt"][0]
            fused[layer, "gate"] = self.tensors[f"{_path(layer)}.adaption_gate"].view(-1, 1, 1)
            if layers is None:
                fused[layer, "prompt"] = prompt
            else:
                fused[layer, "K"], fused[layer, "V"] = _keys_values(prompt, layers[layer], self.shape)
        return fused


def _path(layer: int) -> str:
    return f"model.layers.{layer}.self_attn"


def _keys_values(prompt: Tensor, frozen: Frozen, shape: BackboneShape) -> tuple[Tensor, Tensor]:
    """[..., P, H] -> unrotated K and V, [..., G, P, D]."""

    def heads(name: str) -> Tensor:
        wide = frozen.apply_frozen(name, prompt.to(frozen.dtype))
        return wide.view(*wide.shape[:-1], shape.kv_heads, shape.head_dim).transpose(-2, -3)

    return heads("k_proj"), heads("v_proj")


class LlamaAdapterBatch(Batch):
    """A second, small attention whose gated result is added to the first one's."""

    def attend(self, layer: int, q: Tensor, context: Tensor, frozen: Frozen) -> Tensor:
        if (layer, "gate") not in self.stack:
            return context
        k_SGPD, v_SGPD = self._prompt(layer, frozen)
        rows, heads, tokens, width = q.shape
        q_SMF = self.rows.take(q.transpose(1, 2).reshape(rows, tokens, heads * width))
        slots, per_slot, _ = q_SMF.shape
        groups = k_SGPD.shape[1]
        # [S, M, G, R, D] -> [S * G, R * M, D]: the query heads of one key head share a product
        q_XQD = q_SMF.view(slots, per_slot, groups, -1, width).permute(0, 2, 3, 1, 4).reshape(slots * groups, -1, width)
        scores = product(q_XQD, k_SGPD.flatten(0, 1).transpose(-1, -2)) * width**-0.5
        weights = torch.softmax(scores.to(torch.promote_types(q.dtype, torch.float32)), -1).to(q.dtype)
        added = product(weights, v_SGPD.flatten(0, 1)).reshape(slots, heads, per_slot, width)
        gate = self.rows.of(self.stack[layer, "gate"])
        added = (added.to(gate.dtype) * gate).to(q.dtype).transpose(1, 2).reshape(slots, per_slot, heads * width)
        flat = context.transpose(1, 2).reshape(rows, tokens, heads * width)
        if context.requires_grad:
            flat = flat.clone()  # the fused attention kernel keeps its output for the backward pass
        return self.rows.add(flat, added).view(rows, tokens, heads, width).transpose(1, 2)

    def _prompt(self, layer: int, frozen: Frozen) -> tuple[Tensor, Tensor]:
        if (layer, "K") in self.stack:
            return self.rows.of(self.stack[layer, "K"]), self.rows.of(self.stack[layer, "V"])
        return _keys_values(self.rows.of(self.stack[layer, "prompt"]), frozen, self.shape)


def read_peft(raw: PeftConfig, shape: BackboneShape) -> LlamaAdapterConfig:
    raw.only("target_modules", "self_attn")
    return LlamaAdapterConfig(length=raw.integer("adapter_len", 10), layers=raw.integer("adapter_layers", shape.layers))


def write_peft(config: LlamaAdapterConfig, shape: BackboneShape) -> dict[str, Any]:
    layers = len(adapted_layers(config, shape))
    return {"adapter_len": config.length, "adapter_layers": layers, "target_modules": "self_attn"}


def same_config(read: LlamaAdapterConfig, own: LlamaAdapterConfig) -> bool:
    return read.length == own.length and (own.layers is None or own.layers == read.layers)


def extra_tensors(config: LlamaAdapterConfig) -> Callable[[str], bool]:
    return lambda name: config.per_head_gate and name.endswith(".adaption_gate")


def noop(weights: Weights) -> bool:
    return all(not tensor.any() for name, tensor in weights.tensors.items() if name.endswith("gate"))


METHOD = Method(
    name="llama_adapter",
    config=LlamaAdapterConfig,
    weights=LlamaAdapterWeights,
    batch=LlamaAdapterBatch,
    peft_type="ADAPTION_PROMPT",
    peft_saves_head=False,
    zero_start=True,
    learning_rate=5e-3,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    extra_tensors=extra_tensors,
    noop=noop,
    summary="zero-init gated attention over adaption prompts in the top layers",
)
