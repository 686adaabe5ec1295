"""LoRA adapters: a low-rank correction beside a frozen linear layer (Hu et al. 2021, arXiv 2106.09685).

    y = W x + s * B (A x)        s = alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023)

W belongs to the backbone and every adapter shares it; A and B belong to one adapter. W is never merged, because the
next row of the same batch may wear another adapter.

DoRA (Liu et al. 2024, arXiv 2402.09353) also learns each output's magnitude m:

    y = b + m / ||W + s B A|| * (W x + s B A x)        norms are over rows, and carry no gradient

W + s B A is never built: ||W + s B A||^2 = ||W||^2 + 2 s sum((W A^T) * B) + s^2 sum((B A A^T) * B), by rows.

Shape letters here:  S slots   M rows x tokens of a slot   D features in   E features out   R rank
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from umbel.adapters.dropout import drop, token_keys
from umbel.adapters.method import Batch, Fused, Method, Run, Weights
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.products import product
from umbel.adapters.sites import LM_HEAD, SITES, Frozen
from umbel.core.errors import ConfigError
from umbel.core.shape import LINEARS, BackboneShape

_PLACE = {"qkv": 0, "o": 1, "gate_up": 2, "down": 3, "lm_head": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """How one LoRA adapter is shaped. Stored as JSON beside the weights, so plain fields only."""

    targets: tuple[str, ...] = LINEARS
    """Last path segments to adapt: any of the seven linears, and ``lm_head``."""
    rank: int = 8
    """Inner width R; memory grows with it."""
    alpha: float = 16.0
    """Strength; the correction is scaled by ``alpha / rank``."""
    dropout: float = 0.0
    """Probability that a feature entering A is dropped, in training only."""
    rslora: bool = False
    """Scale by ``alpha / sqrt(rank)``, which keeps gradients alike at high ranks."""
    dora: bool = False
    """Learn each output's magnitude too; starts as the backbone's own."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of single places: PEFT's patterns, matched against the end of the module's path."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of single places, matched the same way."""
    layers: tuple[int, ...] | None = None
    """Layers that are adapted (PEFT's ``layers_to_transform``); None is all."""

    def __post_init__(self) -> None:
        if self.rank < 1 or any(rank < 1 for rank in self.rank_pattern.values()):
            raise ConfigError(f"rank must be at least 1, got {min([self.rank, *self.rank_pattern.values()])}.")
        if not self.targets:
            raise ConfigError("targets is empty: this adapter would change nothing.", hint=f"choose from {LINEARS}")
        if unknown := sorted(set(self.targets) - {*LINEARS, "lm_head"}):
            raise ConfigError(
                f"targets {unknown} match nothing in a Llama backbone.",
                code="unknown_target",
                hint=f"choose from {', '.join(LINEARS)} and lm_head",
            )
        if self.dora and "lm_head" in self.targets:
            raise ConfigError("DoRA on lm_head is not done.", code="unsupported_config_key", param="dora")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        rank, alpha = self.rank_of(path), _by_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _by_pattern(patterns: dict[str, float] | dict[str, int], path: str, default: float) -> float:
    """PEFT's rule: the first key that matches the path's end at a dot, as a regular expression."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def places(config: LoraConfig, shape: BackboneShape) -> dict[tuple[int, str], str]:
    """(layer, linear) -> module path of every place that is adapted, in order."""
    wanted = range(shape.layers) if config.layers is None else config.layers
    if beyond := [layer for layer in wanted if not 0 <= layer < shape.layers]:
        raise ConfigError(
            f"layers {beyond} do not exist: this backbone has {shape.layers}.",
            code="unknown_layer",
            hint=f"count from 0 to {shape.layers - 1}",
        )
    found = {
        (layer, name): f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in wanted
        for name in LINEARS
        if name in config.targets
    }
    if "lm_head" in config.targets:
        found[LM_HEAD, "lm_head"] = "lm_head"
    return found


class LoraWeights(Weights):
    """A [R, D] and B [E, R] for each adapted linear, named as PEFT names them; with DoRA magnitudes [E]."""

    config: LoraConfig
    wide = frozenset(f"{name}.{what}" for name in LINEARS for what in ("magnitude", "scale"))

    @classmethod
    def expected(cls, config: LoraConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        for (_, name), path in places(config, shape).items():
            rank, (d_in, d_out) = config.rank_of(path), shape.linear(name)
            sizes[f"{path}.lora_A.weight"] = (rank, d_in)
            sizes[f"{path}.lora_B.weight"] = (d_out, rank)
            if config.dora:
                sizes[f"{path}.lora_magnitude_vector"] = (d_out,)
        return sizes

    @classmethod
    def fresh(cls, config: LoraConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """A uniform in +-1/sqrt(D) (Kaiming with a = sqrt 5, as PEFT), B zero: the first answer is the backbone's."""
        tensors = {}
        for name, size in cls.expected(config, shape).items():
            bound = 1.0 / math.sqrt(size[1]) if ".lora_A." in name else 0.0
            tensors[name] = (torch.rand(size, generator=generator) * 2 - 1) * bound
        return cls(config, shape, tensors)

    def initialise(self, layers: Sequence[Frozen], run: Run) -> None:
        """DoRA's magnitudes start as the norms of the backbone's rows."""
        for (layer, name), path in places(self.config, self.shape).items():
            if self.config.dora:
                self.tensors[f"{path}.lora_magnitude_vector"].data.copy_(layers[layer].row_norm2(name).sqrt())

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """Per site: A of its linears side by side, [D, sum R]; per linear: scaled B, [R, E]."""
        paths = places(self.config, self.shape)
        fused: Fused = {}
        for layer in dict.fromkeys(layer for layer, _ in paths):
            for site, names in SITES.items():
                here = [name for name in names if (layer, name) in paths]
                if not here:
                    continue
                down = [self.tensors[f"{paths[layer, name]}.lora_A.weight"] for name in here]
                fused[layer, f"{site}.A"] = torch.cat(down).t().contiguous()
                for name in here:
                    path = paths[layer, name]
                    up = self.tensors[f"{path}.lora_B.weight"]
                    fused[layer, f"{name}.B"] = (up * self.config.scale_of(path)).t().contiguous()
                    if self.config.dora:
                        fused |= self._magnitude(layer, name, path, layers)
        return fused

    def _magnitude(self, layer: int, name: str, path: str, layers: Sequence[Frozen] | None) -> Fused:
        """m as it is for training; in serving m / norm, ready to multiply with."""
        magnitude = self.tensors[f"{path}.lora_magnitude_vector"]
        if layers is None:
            return {(layer, f"{name}.magnitude"): magnitude.view(1, -1)}
        down, up = self.tensors[f"{path}.lora_A.weight"], self.tensors[f"{path}.lora_B.weight"]
        norm = adapted_norm(name, down, (up * self.config.scale_of(path)).t(), layers[layer])
        return {(layer, f"{name}.scale"): (magnitude.to(norm.dtype) / norm).view(1, -1)}


@torch.no_grad()
def adapted_norm(name: str, a_RD: Tensor, b_RE: Tensor, frozen: Frozen) -> Tensor:
    """Norms of the rows of W + s B A, [..., E], in at least fp32; ``b_RE`` carries the scale."""
    norm2 = frozen.row_norm2(name)
    wa_RE = frozen.apply_frozen(name, a_RD.to(frozen.dtype), bias=False).to(norm2.dtype)
    a_RD, b_RE = a_RD.to(norm2.dtype), b_RE.to(norm2.dtype)
    squares = (a_RD @ a_RD.transpose(-1, -2)) @ b_RE
    return (norm2 + 2 * (wa_RE * b_RE).sum(-2) + (squares * b_RE).sum(-2)).clamp_min(0.0).sqrt()


class LoraBatch(Batch):
    """Two products per slot and site: x A, then each linear's own B into its columns of y.

    In training the Bs of a site are one block-diagonal matrix instead: a gradient of columns written one after another
    would copy all of y for each of them.
    """

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        a_SDR = self.stack.get((layer, f"{site}.A"))
        if a_SDR is None:
            return y
        x_SMD = self._dropped(self.rows.take(x), layer, site, x.shape[1])
        h_SMR = product(x_SMD, self.rows.of(a_SDR))
        if torch.is_grad_enabled() and not self._rescales(layer, site):
            return self.rows.add(y, product(h_SMR, self._diagonal(layer, site)))
        rank = column = 0
        for name in SITES[site]:
            b_SRE = self.stack.get((layer, f"{name}.B"))
            width = self.shape.linear(name)[1]
            if b_SRE is not None:
                part, own = slice(rank, rank + b_SRE.shape[1]), slice(column, column + width)
                delta = product(h_SMR[..., part], self.rows.of(b_SRE))
                scale = self._scale(layer, name, self.rows.of(a_SDR)[..., part], self.rows.of(b_SRE), frozen)
                y = (
                    self.rows.add(y, delta, own)
                    if scale is None
                    else self._rescaled(y, delta, own, scale, site, frozen)
                )
                rank = part.stop
            column += width
        return y

    def _diagonal(self, layer: int, site: str) -> Tensor:
        """[S, sum R, E of the whole site]; linears that are not adapted have zero columns."""
        widths = [self.shape.linear(name)[1] for name in SITES[site]]
        blocks = []
        for place, name in enumerate(SITES[site]):
            b_SRE = self.stack.get((layer, f"{name}.B"))
            if b_SRE is not None:
                blocks.append(pad(self.rows.of(b_SRE), (sum(widths[:place]), sum(widths[place + 1 :]))))
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
        shift = 0.0 if bias is None else bias[own].to(scale.dtype)
        new = shift + scale * (own_y - shift + delta)
        return self.rows.put(y, new.to(y.dtype), own)

    def _dropped(self, x_SMD: Tensor, layer: int, site: str, tokens: int) -> Tensor:
        if self.dropout is None:
            return x_SMD
        keys = self.rows.tokens(token_keys(self.dropout.keys, tokens))
        return drop(x_SMD, self.dropout, keys, layer, _PLACE[site])


_INITS = (True, False, "gaussian")  # ways to draw A and B that leave the backbone's own weights alone
_UNREAD = (
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "layers_pattern",
    "qalora_group_size",
)


def read_peft(raw: PeftConfig, shape: BackboneShape) -> LoraConfig:
    """PEFT's LoraConfig; what would change the maths and is not done here is refused by name."""
    raw.only("bias", "none")
    raw.only("init_lora_weights", *_INITS)
    raw.harmless(_UNREAD)
    layers = raw.take("layers_to_transform")
    return LoraConfig(
        targets=_targets(raw),
        rank=raw.integer("r", 8),
        alpha=raw.number("lora_alpha", 8),
        dropout=raw.number("lora_dropout", 0.0),
        rslora=bool(raw.take("use_rslora", False)),
        dora=bool(raw.take("use_dora", False)),
        rank_pattern={key: int(value) for key, value in raw.table("rank_pattern").items()},
        alpha_pattern={key: float(value) for key, value in raw.table("alpha_pattern").items()},
        layers=None if layers is None else (layers,) if isinstance(layers, int) else tuple(layers),
    )


def _targets(raw: PeftConfig) -> tuple[str, ...]:
    """Last path segments, in the backbone's order; ``all-linear`` is the seven."""
    everything = raw.take("target_modules") == "all-linear"
    modules = LINEARS if everything else raw.names("target_modules", ("q_proj", "v_proj"))
    wanted = {name.rsplit(".", 1)[-1] for name in modules} - set(raw.names("exclude_modules"))
    known = tuple(name for name in (*LINEARS, "lm_head") if name in wanted)
    return known + tuple(sorted(wanted - set(known)))


def write_peft(config: LoraConfig, shape: BackboneShape) -> dict[str, Any]:
    """PEFT's keys; those that have their default stay out, so that old readers can load it."""
    optional = {
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "layers_to_transform": None if config.layers is None else list(config.layers),
    }
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        **{key: value for key, value in optional.items() if value},
    }


def same_config(read: LoraConfig, own: LoraConfig) -> bool:
    """PEFT keeps targets as a set, so their order is not compared."""
    same_targets = set(read.targets) == set(own.targets)
    return same_targets and replace(read, targets=own.targets) == own


def noop(weights: Weights) -> bool:
    return all(not tensor.any() for name, tensor in weights.tensors.items() if ".lora_B." in name)


METHOD = Method(
    name="lora",
    config=LoraConfig,
    weights=LoraWeights,
    batch=LoraBatch,
    peft_type="LORA",
    zero_start=True,
    learning_rate=5e-4,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    noop=noop,
    summary="low-rank correction beside frozen linears",
)
