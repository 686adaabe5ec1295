"""LoRA adapters: a low-rank correction beside a frozen linear layer (Hu et al. 2021, arXiv 2106.09685).

    y = W x + s * B (A x)        s = alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023)

W belongs to the backbone and every adapter shares it; A and B belong to one adapter. W is never merged, because the
next row of the same batch may wear another adapter.

DoRA (Liu et al. 2024, arXiv 2402.09353) also learns each output's magnitude m:

    y = b + m / ||W + s B A|| * (W x + s B A x)        norms are over rows, and carry no gradient

W + s B A is never built: ||W + s B A||^2 = ||W||^2 + 2 s sum((W A^T) * B) + s^2 sum((B A A^T) * B), by rows.

Embeddings, token rows, full copies and biases are in ``lora_ends``, the products of a batch in ``lora_batch``.

Shape letters here:  S slots   M rows x tokens of a slot   D features in   E features out   R rank
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from umbel.adapters import lora_ends
from umbel.adapters.lora_batch import LoraBatch, adapted_norm
from umbel.adapters.lora_targets import (
    ENDS,
    Place,
    by_pattern,
    check_found,
    check_targets,
    chosen,
    modules,
    read_targets,
)
from umbel.adapters.method import Fused, Key, Method, Run, Weights
from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.sites import EMBEDDING, SITES, Ends, Frozen, gathered
from umbel.core.courtesy import give_way
from umbel.core.errors import ConfigError
from umbel.core.shape import LINEARS, BackboneShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """How one LoRA adapter is shaped. Stored as JSON beside the weights, so plain fields only."""

    targets: tuple[str, ...] = LINEARS
    """What to adapt: any of the seven linears, ``lm_head`` and ``embed_tokens``; or longer ends of modules' paths."""
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
    bias: Literal["none", "all", "lora_only"] = "none"
    """Train the backbone's biases too: all of them, or those of the adapted linears. Many backbones have none."""
    lora_bias: bool = False
    """Add a learned vector to each B's output."""
    token_rows: tuple[int, ...] = ()
    """Token ids whose embeddings are trained; where lm_head is tied to the embeddings, their logits follow."""
    lm_head_rows: tuple[int, ...] = ()
    """Token ids whose rows of lm_head are trained, apart from the embeddings."""
    full_copies: tuple[Literal["embed_tokens", "lm_head"], ...] = ()
    """Matrices that are trained whole: each is as large as the vocabulary."""

    def __post_init__(self) -> None:
        if self.rank < 1 or any(rank < 1 for rank in self.rank_pattern.values()):
            raise ConfigError(f"rank must be at least 1, got {min([self.rank, *self.rank_pattern.values()])}.")
        check_targets(self.targets)
        if self.dora and (self.lora_bias or any(target.rsplit(".", 1)[-1] in ENDS for target in self.targets)):
            raise ConfigError(
                "DoRA is done in the layers only, and without lora_bias.",
                code="unsupported_config_key",
                param="dora",
                hint="leave dora out, or embed_tokens, lm_head and lora_bias",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        for ids in (self.token_rows, self.lm_head_rows):
            if len(set(ids)) < len(ids):
                raise ConfigError("a token id is named twice.", param="token_rows")

    def rank_of(self, path: str) -> int:
        return int(by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        rank, alpha = self.rank_of(path), by_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def places(config: LoraConfig, shape: BackboneShape) -> dict[Place, str]:
    """(layer, linear) -> module path of every place that has an A and a B, in order."""
    check_found(config.targets, config.layers, shape)
    return chosen(config.targets, config.layers, shape)


def token_rows(config: LoraConfig, shape: BackboneShape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """End -> (its tensor, token ids). Tied ends share one tensor unless they are given rows of their own."""
    found = {}
    follows = shape.tied and config.lm_head_rows in ((), config.token_rows)
    for end, ids in (("embed_tokens", config.token_rows), ("lm_head", config.lm_head_rows)):
        if ids or (end == "lm_head" and follows and config.token_rows):
            holder = ENDS["embed_tokens" if follows else end][1]
            found[end] = f"{holder}.token_adapter.trainable_tokens_delta", ids or config.token_rows
    return found


def biases(config: LoraConfig, shape: BackboneShape) -> dict[Place, str]:
    """The tensor of every bias of the backbone that the adapter has its own of, named as PEFT names it."""
    if config.bias == "none":
        return {}
    adapted = places(config, shape)
    return {
        place: f"{path}.base_layer.bias" if place in adapted else f"{path}.bias"
        for place, path in modules(shape).items()
        if place[1] in shape.biases and (config.bias == "all" or place in adapted)
    }


def _check_ends(config: LoraConfig, shape: BackboneShape) -> None:
    """Raises ConfigError for a token id beyond the vocabulary, or an end that is changed in two ways (as PEFT does)."""
    own = token_rows(config, shape)
    if beyond := [i for _, ids in own.values() for i in ids if not 0 <= i < shape.vocab]:
        raise ConfigError(
            f"token {beyond[0]} does not exist: this backbone's vocabulary has {shape.vocab}.",
            code="unknown_token",
            param="token_rows",
            hint=f"count from 0 to {shape.vocab - 1}",
        )
    targets = {name for layer, name in places(config, shape) if layer < 0}
    for end in ENDS:
        if (end in targets) + (end in own) + (end in config.full_copies) > 1:
            raise ConfigError(
                f"{end} would be changed in two ways at once: target, token rows and full copy exclude each other.",
                code="conflicting_places",
                param="targets",
                hint=f"name {end} once; where the ends are tied, token_rows change lm_head too",
            )


class LoraWeights(Weights):
    """A [R, D] and B [E, R] for each adapted linear, named as PEFT names them; with DoRA magnitudes [E].

    Of the embeddings lora_embedding_A [R, V] and B [H, R]; token rows [n, H]; full copies [V, H]; biases [E].
    """

    config: LoraConfig
    wide = frozenset(
        f"{name}.{what}" for name in (*LINEARS, "lm_head") for what in ("magnitude", "scale", *lora_ends.BIASES)
    )

    @classmethod
    def expected(cls, config: LoraConfig, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        _check_ends(config, shape)
        sizes: dict[str, tuple[int, ...]] = {}
        for (layer, name), path in places(config, shape).items():
            rank = config.rank_of(path)
            if layer == EMBEDDING:
                sizes[f"{path}.lora_embedding_A"] = (rank, shape.vocab)
                sizes[f"{path}.lora_embedding_B"] = (shape.hidden, rank)
                continue
            d_in, d_out = shape.linear(name)
            sizes[f"{path}.lora_A.weight"] = (rank, d_in)
            sizes[f"{path}.lora_B.weight"] = (d_out, rank)
            if config.lora_bias:
                sizes[f"{path}.lora_B.bias"] = (d_out,)
            if config.dora:
                sizes[f"{path}.lora_magnitude_vector"] = (d_out,)
        sizes |= {path: (shape.linear(name)[1],) for (_, name), path in biases(config, shape).items()}
        sizes |= {tensor: (len(ids), shape.hidden) for tensor, ids in token_rows(config, shape).values()}
        return sizes | {f"{ENDS[end][1]}.weight": (shape.vocab, shape.hidden) for end in config.full_copies}

    @classmethod
    def fresh(cls, config: LoraConfig, shape: BackboneShape, generator: torch.Generator) -> Self:
        """A uniform in +-1/sqrt(D) (Kaiming with a = sqrt 5, as PEFT), B zero: the first answer is the backbone's.

        Embeddings the other way round, as in PEFT: A zero, B normal.
        """
        tensors = {}
        for name, size in cls.expected(config, shape).items():
            if name.endswith("lora_embedding_B"):
                tensors[name] = torch.randn(size, generator=generator)
                continue
            bound = 1.0 / math.sqrt(size[1]) if ".lora_A." in name else 0.0
            tensors[name] = (torch.rand(size, generator=generator) * 2 - 1) * bound
        return cls(config, shape, tensors)

    @property
    def lowest_layer(self) -> int:
        """By the tensors' own names: one that lies neither in a layer nor on lm_head may act on the embeddings."""
        found = (_layer_of(name, self.shape.layers) for name in self.tensors)
        return min(found, default=0)

    @torch.no_grad()
    def initialise(self, layers: Sequence[Frozen], run: Run, ends: Ends | None = None) -> None:
        """What replaces something of the backbone starts as that: magnitudes, biases, token rows and full copies."""
        for (layer, name), path in places(self.config, self.shape).items():
            if self.config.dora:
                self.tensors[f"{path}.lora_magnitude_vector"].copy_(layers[layer].row_norm2(name).sqrt())
        for (layer, name), tensor in biases(self.config, self.shape).items():
            self.tensors[tensor].copy_(_own_bias(layers[layer], name, self.shape))
        for end, (tensor, ids) in token_rows(self.config, self.shape).items():
            assert ends is not None
            self.tensors[tensor].copy_(ends.matrix(end)[list(ids)])
        for end in self.config.full_copies:
            assert ends is not None
            self.tensors[f"{ENDS[end][1]}.weight"].copy_(ends.matrix(end))

    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """Per site: A of its linears, [sum R, D]; per linear: scaled B, [R, E]. Ends and biases first.

        Each lies as oneDNN multiplies few rows with it fastest. In serving the Bs of a site are cut into blocks of
        equal width where that can be, [P, R, E]: one product and one sum instead of one for each linear.
        """
        paths = places(self.config, self.shape)
        fused: Fused = dict(self._ends(paths))
        scaled = self._scaled_ups([path for (layer, _), path in paths.items() if layer != EMBEDDING])
        for layer in dict.fromkeys(layer for layer, _ in paths):
            give_way()
            for site, names in SITES.items():
                here = [name for name in names if (layer, name) in paths]
                if not here:
                    continue
                down = [self.tensors[f"{paths[layer, name]}.lora_A.weight"] for name in here]
                fused[layer, f"{site}.A"] = torch.cat(down) if len(down) > 1 else down[0]
                ups = {name: scaled[paths[layer, name]] for name in here}
                if layers is not None and self._has_blocks(site, ups):
                    fused[layer, f"{site}.blocks"] = _in_blocks(list(ups.values()))
                    continue
                fused |= {(layer, f"{name}.B"): up for name, up in ups.items()}
                for name in here if self.config.dora else []:
                    fused |= self._magnitude(layer, name, paths[layer, name], layers)
        return fused

    def _scaled_ups(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """Each path's [R, E]. Those of one shape and scale come of two calls, where two for each of them take as long
        as the rest of a load."""
        alike: dict[tuple[torch.Size, torch.dtype, float], list[str]] = {}
        for path in paths:
            up = self.tensors[f"{path}.lora_B.weight"]
            alike.setdefault((up.shape, up.dtype, self.config.scale_of(path)), []).append(path)
        found: dict[str, Tensor] = {}
        for (*_, scale), group in alike.items():
            together = torch.stack([self.tensors[f"{path}.lora_B.weight"] for path in group]) * scale
            found |= zip(group, together.transpose(1, 2).contiguous(), strict=True)
        return found

    def _has_blocks(self, site: str, ups: Mapping[str, Tensor]) -> bool:
        """Whether every linear of a site of several is adapted, alike: the same rank, and no magnitudes."""
        alike = len({up.shape[0] for up in ups.values()}) == 1
        return alike and 1 < len(ups) == len(SITES[site]) and not self.config.dora

    def _ends(self, paths: Mapping[Place, str]) -> Iterator[tuple[Key, Tensor]]:
        """They come first, so that one look at the first key tells which stacks have any (``kind_for``)."""
        for end in self.config.full_copies:
            yield (ENDS[end][0], "table"), self.tensors[f"{ENDS[end][1]}.weight"]
        for place, (tensor, ids) in token_rows(self.config, self.shape).items():
            for what, value in lora_ends.sorted_rows(ids, self.tensors[tensor]).items():
                yield (ENDS[place][0], what), value
        if path := paths.get((EMBEDDING, "embed_tokens")):
            up = self.tensors[f"{path}.lora_embedding_B"] * self.config.scale_of(path)
            yield (EMBEDDING, "embed_tokens.A"), self.tensors[f"{path}.lora_embedding_A"].t().contiguous()
            yield (EMBEDDING, "embed_tokens.B"), up.t().contiguous()
        for (layer, name), tensor in biases(self.config, self.shape).items():
            yield (layer, f"{name}.bias"), self.tensors[tensor].view(1, -1)
        for (layer, name), path in paths.items():
            if self.config.lora_bias and layer != EMBEDDING:
                yield (
                    (layer, f"{name}.shift"),
                    (self.tensors[f"{path}.lora_B.bias"] * self.config.scale_of(path)).view(1, -1),
                )

    def _magnitude(self, layer: int, name: str, path: str, layers: Sequence[Frozen] | None) -> Fused:
        """m as it is for training; in serving m / norm, ready to multiply with."""
        magnitude = self.tensors[f"{path}.lora_magnitude_vector"]
        if layers is None:
            return {(layer, f"{name}.magnitude"): magnitude.view(1, -1)}
        down, up = self.tensors[f"{path}.lora_A.weight"], self.tensors[f"{path}.lora_B.weight"]
        norm = adapted_norm(name, down, (up * self.config.scale_of(path)).t(), layers[layer])
        return {(layer, f"{name}.scale"): (magnitude.to(norm.dtype) / norm).view(1, -1)}


def _own_bias(layer: Frozen, name: str, shape: BackboneShape) -> Tensor:
    """The backbone's bias of one linear, [E]."""
    site, names = next((site, names) for site, names in SITES.items() if name in names)
    bias = layer.bias(site)
    assert bias is not None
    start = sum(shape.linear(other)[1] for other in names[: names.index(name)])
    return gathered(bias)[start : start + shape.linear(name)[1]]


def _in_blocks(ups: Sequence[Tensor]) -> Tensor:
    """Linears [R, E_i] of widths that are multiples of the narrowest, as blocks [P, R, E]."""
    width = min(up.shape[1] for up in ups)
    return torch.cat([up.view(up.shape[0], -1, width).transpose(0, 1) for up in ups]).contiguous()


def _layer_of(name: str, layers: int) -> int:
    if name.startswith("lm_head."):
        return layers
    inside = name.removeprefix("model.layers.")
    return int(inside.split(".", 1)[0]) if inside != name else 0


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
    raw.only("init_lora_weights", *_INITS)
    raw.harmless(_UNREAD)
    chosen_layers = raw.take("layers_to_transform")
    layers = (chosen_layers,) if isinstance(chosen_layers, int) else tuple(chosen_layers or ()) or None
    targets, layers = read_targets(raw, layers, shape)
    token_ids, lm_head_ids = _read_rows(raw)
    copies = _copies(raw)
    if raw.take("ensure_weight_tying") and shape.tied:  # PEFT then writes both ends, though it names one
        targets, copies = _with_lm_head(targets), _with_lm_head(copies)
    return LoraConfig(
        targets=targets,
        rank=raw.integer("r", 8),
        alpha=raw.number("lora_alpha", 8),
        dropout=raw.number("lora_dropout", 0.0),
        rslora=bool(raw.take("use_rslora", False)),
        dora=bool(raw.take("use_dora", False)),
        rank_pattern={key: int(value) for key, value in raw.table("rank_pattern").items()},
        alpha_pattern={key: float(value) for key, value in raw.table("alpha_pattern").items()},
        layers=layers,
        bias=raw.one_of("bias", "none", "all", "lora_only"),
        lora_bias=bool(raw.take("lora_bias", False)),
        token_rows=token_ids,
        lm_head_rows=lm_head_ids,
        full_copies=copies,
    )


def _copies(raw: PeftConfig) -> tuple[Any, ...]:
    """Full copies in ``modules_to_save``; the output heads in it are read elsewhere."""
    saved = {name.rsplit(".", 1)[-1] for name in raw.names("modules_to_save")}
    return tuple(end for end in ENDS if end in saved)


def _with_lm_head(names: tuple[Any, ...]) -> tuple[Any, ...]:
    tied = any(name.rsplit(".", 1)[-1] == "embed_tokens" for name in names) and "lm_head" not in names
    return (*names, "lm_head") if tied else names


def _read_rows(raw: PeftConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the embeddings and of lm_head; a list is the embeddings'."""
    value = raw.take("trainable_token_indices", [])
    table = value if isinstance(value, dict) else {"embed_tokens": value}
    ids = {str(key).rsplit(".", 1)[-1]: tuple(ids) if isinstance(ids, list) else None for key, ids in table.items()}
    if not ids.keys() <= ENDS.keys() or not all(
        found is not None and all(type(i) is int for i in found) for found in ids.values()
    ):
        raise raw.mistyped("trainable_token_indices", value, "a list of token ids, of embed_tokens or lm_head,")
    return ids.get("embed_tokens") or (), ids.get("lm_head") or ()


def write_peft(config: LoraConfig, shape: BackboneShape) -> dict[str, Any]:
    """PEFT's keys; those that have their default stay out, so that old readers can load it."""
    optional = {
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "layers_to_transform": None if config.layers is None else list(config.layers),
        "lora_bias": config.lora_bias,
        "trainable_token_indices": _written_rows(config),
        "modules_to_save": list(config.full_copies),
    }
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(config.targets),
        "bias": config.bias,
        "fan_in_fan_out": False,
        **{key: value for key, value in optional.items() if value},
    }


def _written_rows(config: LoraConfig) -> list[int] | dict[str, list[int]]:
    if not config.lm_head_rows:
        return list(config.token_rows)
    rows = {"embed_tokens": list(config.token_rows), "lm_head": list(config.lm_head_rows)}
    return {end: ids for end, ids in rows.items() if ids}


def same_config(read: LoraConfig, own: LoraConfig) -> bool:
    """PEFT keeps targets and saved modules as sets, so their order is not compared."""
    same = set(read.targets) == set(own.targets) and set(read.full_copies) == set(own.full_copies)
    return same and replace(read, targets=own.targets, full_copies=own.full_copies) == own


def noop(weights: Weights) -> bool:
    """Whether all products are zero. What replaces a part of the backbone is taken as a change."""
    products = [t for name, t in weights.tensors.items() if ".lora_B." in name or name.endswith("lora_embedding_A")]
    others = [name for name in weights.tensors if ".lora_" not in name]
    return not others and all(not tensor.any() for tensor in products)


METHOD = Method(
    name="lora",
    config=LoraConfig,
    weights=LoraWeights,
    batch=LoraBatch,
    peft_type="LORA",
    zero_start=True,
    learning_rate=5e-4,
    saved_modules=frozenset(ENDS),
    read_peft=read_peft,
    write_peft=write_peft,
    same_config=same_config,
    noop=noop,
    summary="low-rank correction beside frozen linears",
)
