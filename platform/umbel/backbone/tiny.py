"""A tiny random backbone with a byte tokenizer, as a Hugging Face folder: what tests and dry runs stand on."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "dtype": "float32",
}
"""Defaults of the tiny config; ``tiny_backbone(..., hidden_size=48)`` changes a field."""

_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_backbone(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Writes config, random weights and a tokenizer; returns folder. Biases are random: zeros would hide faults."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**TINY, **changes}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, size, generator) for name, size in tensor_sizes(config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_byte_tokenizer(folder)
    return folder


def tensor_sizes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint, as Hugging Face writes them."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    qwen = config["model_type"] == "qwen2"
    linears = {
        "self_attn.q_proj": (queries, hidden, config["attention_bias"] or qwen),
        "self_attn.k_proj": (keys, hidden, config["attention_bias"] or qwen),
        "self_attn.v_proj": (keys, hidden, config["attention_bias"] or qwen),
        "self_attn.o_proj": (hidden, queries, config["attention_bias"]),
        "mlp.gate_proj": (inner, hidden, config["mlp_bias"]),
        "mlp.up_proj": (inner, hidden, config["mlp_bias"]),
        "mlp.down_proj": (hidden, inner, config["mlp_bias"]),
    }
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"{prefix}.{norm}.weight"] = (hidden,)
        for name, (d_out, d_in, bias) in linears.items():
            sizes[f"{prefix}.{name}.weight"] = (d_out, d_in)
            if bias:
                sizes[f"{prefix}.{name}.bias"] = (d_out,)
    return sizes


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(size, generator=generator)
    if "norm" in name:
        return 1.0 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    return noise * (0.5 if "embed" in name else 1.5 / size[-1] ** 0.5)


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are the 256 bytes and <bos>, <eos>, <pad>, <unk>, with a small chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
