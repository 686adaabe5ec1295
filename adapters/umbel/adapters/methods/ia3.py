"""IA3 (Liu et al. 2022, arXiv 2205.05638): learned scales on keys, values and the feed-forward's inner features.

    k = l_k * (W_k x + b)      v = l_v * (W_v x + b)      y = W_down (l_ff * x)

Scales multiply in at least fp32 and are rounded once: bf16 scales near one would lose most of what was learned.

Shape letters here:  S slots   M rows x tokens of a slot   D features in   E features out
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from umbel.adapters.method import Batch, Fused, Method, Weights
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import SITES, Frozen
from umbel.core.errors import ConfigError
from umbel.core.shape import LINEARS, BackboneShape

_SHARED_INPUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class IA3Config:
    """Which linears are scaled, and on which side."""

    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    """All scaled linears."""
    feedforward: tuple[str, ...] = ("down_proj",)
    """Those of them that are scaled at their input; the others at their output."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.targets) - set(LINEARS)):
            raise ConfigError(f"targets {unknown} match nothing.", code="unknown_target", hint=f"choose from {LINEARS}")
        if not self.targets:
            raise ConfigError("targets is empty: this adapter would change nothing.", code="unknown_target")
        if beyond := sorted(set(self.feedforward) & set(_SHARED_INPUT)):
            raise ConfigError(
                f"{beyond[0]} shares its input with other linears, so it cannot be scaled there alone.",
                code="unsupported_config_key",
                param="feedforward",
                hint="scale o_proj or down_proj at the input, the others at the output",
            )
        if not set(self.feedforward) <= set(self.targets):
            raise ConfigError("feedforward must be among targets.", param="feedforward")


class IA3Weights(Weights):
    """``ia3_l`` [E, 1] for a scaled output, [1, D] for a scaled input."""

    config: IA3Config
    wide = frozenset(f"{site}.{side}" for site in SITES for side in ("in", "out"))

    @classmethod
    def expected(cls, config: IA3Config, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        for layer in range(shape.layers):
            for name in LINEARS:
                if name in config.targets:
                    d_in, d_out = shape.linear(name)
                    sizes[_path(layer, name)] = (1, d_in) if name in config.feedforward else (d_out, 1)
        return sizes

    @classmethod
    def fresh(cls, config: IA3Config, shape: BackboneShape, generator: torch.Generator) -> Self:
        """All ones: the first answer is the backbone's."""
        return cls(config, shape, {name: torch.ones(size) for name, size in cls.expected(config, shape).items()})

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """Per layer and site one row of scales, ones where a linear of the site is not scaled."""
        fused: Fused = {}
        for layer in range(self.shape.layers):
            for site, names in SITES.items():
                for name in set(names) & set(self.config.feedforward):
                    fused[layer, f"{site}.in"] = self.tensors[_path(layer, name)].view(1, -1)
                if any(name in self._outputs for name in names):
                    fused[layer, f"{site}.out"] = torch.cat([self._scale(layer, name) for name in names]).view(1, -1)
        return fused

    @property
    def _outputs(self) -> set[str]:
        return set(self.config.targets) - set(self.config.feedforward)

    def _scale(self, layer: int, name: str) -> Tensor:
        if name in self._outputs:
            return self.tensors[_path(layer, name)].flatten()
        like = next(iter(self.tensors.values()))
        return like.new_ones(self.shape.linear(name)[1])


def _path(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.ia3_l"


class IA3Batch(Batch):
    """One multiplication at each scaled side."""

    def input(self, layer: int, site: str, x: Tensor) -> Tensor:
        return self._scaled(x, self.stack.get((layer, f"{site}.in")))

    def linear(self, layer: int, site: str, x: Tensor, y: Tensor, frozen: Frozen) -> Tensor:
        return self._scaled(y, self.stack.get((layer, f"{site}.out")))

    def _scaled(self, x: Tensor, scale_S1E: Tensor | None) -> Tensor:
        if scale_S1E is None:
            return x
        x_SME = self.rows.take(x)
        return self.rows.put(x, (x_SME.to(scale_S1E.dtype) * self.rows.of(scale_S1E)).to(x.dtype))


def read_peft(raw: PeftConfig, shape: BackboneShape) -> IA3Config:
    raw.harmless(["init_ia3_weights"])
    return IA3Config(
        targets=_ordered(raw.names("target_modules", ("k_proj", "v_proj", "down_proj"))),
        feedforward=_ordered(raw.names("feedforward_modules", ("down_proj",))),
    )


def _ordered(names: Sequence[str]) -> tuple[str, ...]:
    wanted = {name.rsplit(".", 1)[-1] for name in names}
    return tuple(name for name in LINEARS if name in wanted) + tuple(sorted(wanted - set(LINEARS)))


def write_peft(config: IA3Config, shape: BackboneShape) -> dict[str, Any]:
    return {
        "target_modules": sorted(config.targets),
        "feedforward_modules": sorted(config.feedforward),
        "fan_in_fan_out": False,
    }


def same_config(read: IA3Config, own: IA3Config) -> bool:
    return set(read.targets) == set(own.targets) and set(read.feedforward) == set(own.feedforward)


def noop(weights: Weights) -> bool:
    return all(bool((tensor == 1).all()) for tensor in weights.tensors.values())


METHOD = Method(
    name="ia3",
    config=IA3Config,
    weights=IA3Weights,
    batch=IA3Batch,
    peft_type="IA3",
    zero_start=True,
    learning_rate=5e-3,
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    noop=noop,
    summary="learned scales on keys, values and the feed-forward",
)
