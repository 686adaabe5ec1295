"""Reads a Hugging Face ``config.json`` of the Llama family into the numbers the decoder needs.

What the decoder does not do is refused by name, never ignored.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umbel.core.errors import ConfigError, NotFound
from umbel.core.shape import LINEARS, BackboneShape

_FAMILIES = ("llama", "mistral", "qwen2")
_ROPE_TYPES = ("default", "linear", "llama3", "dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A Llama-family decoder by numbers. Fields bear on the maths, so they are part of the fingerprint."""

    family: str
    shape: BackboneShape
    norm_eps: float
    rope_theta: float
    rope_type: str = "default"
    rope: dict[str, float] = field(default_factory=dict)
    """Further numbers of the RoPE variant (``factor``, ``low_freq_factor`` ...)."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    max_positions: int = 2048
    """Longest sequence, virtual tokens included."""
    dtype: str = "float32"
    """The checkpoint's own."""
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def maths(self) -> dict[str, Any]:
        """The fields that decide what the tensors compute; what the fingerprint covers."""
        shape = self.shape
        return {
            "head_dim": shape.head_dim,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "norm_eps": self.norm_eps,
            "rope": dict(sorted(self.rope.items())),
            "rope_theta": self.rope_theta,
            "rope_type": self.rope_type,
            "tied": shape.tied,
        }


def read_config(folder: Path) -> BackboneConfig:
    """Raises NotFound without a ``config.json``, ConfigError for what the decoder does not do."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(
            f"{folder} holds no config.json, so it is no backbone.",
            code="backbone_not_found",
            hint="umbel pull backbone smollm2-135m-instruct",
        )
    return parse_config(json.loads(path.read_text(encoding="utf-8")))


def parse_config(raw: Mapping[str, Any]) -> BackboneConfig:
    family = str(raw.get("model_type"))
    if family not in _FAMILIES:
        raise _refused(f"model_type {family!r}", f"use one of {', '.join(_FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise _refused(f"hidden_act {raw['hidden_act']!r}", "only silu is known")
    if raw.get("quantization_config"):
        raise _refused("a quantised checkpoint", "use the unquantised folder")
    rope = _rope(raw)
    qkv_bias = family == "qwen2" or bool(raw.get("attention_bias", False))
    o_bias, mlp_bias = (family == "llama" and bool(raw.get(key, False)) for key in ("attention_bias", "mlp_bias"))
    with_bias = dict(zip(LINEARS, [qkv_bias] * 3 + [o_bias] + [mlp_bias] * 3, strict=True))
    heads = int(raw["num_attention_heads"])
    shape = BackboneShape(
        hidden=int(raw["hidden_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
        intermediate=int(raw["intermediate_size"]),
        vocab=int(raw["vocab_size"]),
        tied=bool(raw.get("tie_word_embeddings", False)),
        biases=tuple(name for name, has in with_bias.items() if has),
    )
    eos = raw.get("eos_token_id")
    return BackboneConfig(
        family=family,
        shape=shape,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.pop("rope_theta", 10_000.0)),
        rope_type=str(rope.pop("rope_type")),
        rope={key: float(value) for key, value in rope.items()},
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        max_positions=_max_positions(raw),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        bos=raw.get("bos_token_id"),
        eos=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
    )


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` (transformers 5) or ``rope_scaling`` + ``rope_theta`` (4), as one dictionary."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = raw.get("rope_theta", 10_000.0)
    if rope["rope_type"] not in _ROPE_TYPES:
        raise _refused(f"rope_type {rope['rope_type']!r}", f"use one of {', '.join(_ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise _refused("partial_rotary_factor", "only a full rotation is known")
    rope.pop("partial_rotary_factor", None)
    return {key: value for key, value in rope.items() if value is not None}


def _max_positions(raw: Mapping[str, Any]) -> int:
    """Within a sliding window full attention is the same, and ``dynamic`` RoPE is the default one: stop there."""
    limit = int(raw.get("max_position_embeddings", 2048))
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    if raw.get("model_type") in ("mistral", "qwen2") and window:
        limit = min(limit, int(window))
    return limit


def _refused(what: str, hint: str) -> ConfigError:
    return ConfigError(
        f"this backbone has {what}, which the decoder does not do.", code="unsupported_backbone", hint=hint
    )


def inverse_frequencies(config: BackboneConfig) -> list[float]:
    """Rotations per position for each pair of features, [head_dim / 2], by RoPE variant.

    ``dynamic`` equals ``default`` up to the original length; beyond it Hugging Face scales by the longest row of the
    batch, so a row would feel its neighbours: such lengths are refused (``max_positions``).
    llama3: Llama 3.1's smooth interpolation between scaled low and kept high frequencies.
    """
    width = config.shape.head_dim
    plain = [config.rope_theta ** (-2 * i / width) for i in range(width // 2)]
    if config.rope_type == "linear":
        return [frequency / config.rope["factor"] for frequency in plain]
    if config.rope_type == "llama3":
        return [_llama3(frequency, config.rope) for frequency in plain]
    return plain


def _llama3(frequency: float, rope: Mapping[str, float]) -> float:
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = original * frequency / (2 * math.pi)
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return (1 - kept) * frequency / factor + kept * frequency
