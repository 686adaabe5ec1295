"""The decoder against Hugging Face: tiny random configs that cover the family's variants, and SmolLM2 itself."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "grouped": {},
    "one kv head": {"num_key_value_heads": 1},
    "full heads": {"num_key_value_heads": 4},
    "untied": {"tie_word_embeddings": False},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "wide heads": {"head_dim": 16},
    "narrow odd": {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4},
    "rope linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "rope llama3": {"rope_parameters": LLAMA3},
    "rope dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False},
    "three layers": {"num_hidden_layers": 3, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e6}},
}


def reference(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).eval()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_are_those_of_hugging_face(variant, tmp_path):
    folder = tiny_backbone(tmp_path / "tiny", seed=len(variant), **VARIANTS[variant])
    ours, theirs = load_backbone(folder), reference(folder)
    tokens = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours.decoder(tokens, whole_step(rows=1, tokens=50, want=torch.arange(50))).logits
        torch.testing.assert_close(logits, theirs(tokens).logits[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", ["grouped", "attention bias", "rope llama3"], ids=str)
def test_padding_changes_no_row(variant, tmp_path):
    folder = tiny_backbone(tmp_path / "tiny", **VARIANTS[variant])
    ours, theirs = load_backbone(folder), reference(folder)
    rows = [torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 17, 11)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=258)
    with torch.no_grad():
        hidden = ours.decoder(padded, whole_step(rows=3, tokens=17, want=torch.arange(51))).logits.view(3, 17, -1)
        for row, tokens in enumerate(rows):
            torch.testing.assert_close(
                hidden[row, : len(tokens)], theirs(tokens[None]).logits[0], atol=2e-5, rtol=0
            )  # fmt: skip


def test_sharded_weights_load_alike_and_have_one_fingerprint(tmp_path):
    folder = tiny_backbone(tmp_path / "one")
    model = reference(folder)
    model.save_pretrained(str(tmp_path / "many"), max_shard_size="20KB")
    (tmp_path / "many" / "config.json").write_text((folder / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "many" / name).write_text((folder / name).read_text())
    one, many = load_backbone(folder), load_backbone(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert one.fingerprint == many.fingerprint
    for name, tensor in one.decoder.state_dict().items():
        assert torch.equal(tensor, many.decoder.state_dict()[name])


def test_another_weight_or_rope_is_another_fingerprint(tmp_path):
    prints = {
        load_backbone(tiny_backbone(tmp_path / str(i), **changes)).fingerprint
        for i, changes in enumerate([{"seed": 0}, {"seed": 1}, {"rope_parameters": {"rope_theta": 1e6}}])
    }
    assert len(prints) == 3


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_every_dtype_runs_frozen(dtype, tmp_path):
    backbone = load_backbone(tiny_backbone(tmp_path / "tiny"), dtype=dtype)
    hidden = backbone.decoder(torch.tensor([[1, 2, 3]]), whole_step(rows=1, tokens=3)).hidden
    assert hidden.dtype == backbone.dtype
    assert torch.isfinite(hidden).all()
    assert not any(p.requires_grad for p in backbone.decoder.parameters())


def test_float64_is_a_truth_that_fp32_approaches(tmp_path):
    folder = tiny_backbone(tmp_path / "tiny")
    tokens = torch.arange(40)[None]
    wide, narrow = (load_backbone(folder, dtype=dtype).decoder for dtype in ("fp64", "fp32"))
    truth = wide(tokens, whole_step(rows=1, tokens=40)).hidden
    error = (narrow(tokens, whole_step(rows=1, tokens=40)).hidden - truth).abs().max()
    assert 0 < error < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_packed_linears_give_the_dense_answer(dtype, tmp_path):
    folder = tiny_backbone(tmp_path / "tiny", attention_bias=True, mlp_bias=True)
    dense, packed = load_backbone(folder, dtype=dtype), load_backbone(folder, dtype=dtype, packed=True)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        a, b = (m.decoder(tokens, whole_step(rows=1, tokens=40)).hidden for m in (dense, packed))
        x = torch.randn(3, 32, dtype=dense.dtype)
        parts = [m.decoder.layers[1].apply_frozen("k_proj", x, bias=False) for m in (dense, packed)]
    torch.testing.assert_close(a, b, atol=1e-5 if dtype == "fp32" else 0.1, rtol=0)
    torch.testing.assert_close(*parts, atol=1e-5 if dtype == "fp32" else 0.1, rtol=0)


def test_packed_linears_refuse_to_train_in_silence(tmp_path):
    packed = load_backbone(tiny_backbone(tmp_path / "tiny"), packed=True)
    x = torch.randn(2, 3, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="packed=False"):
        packed.decoder.layers[0].qkv(x)


def smol() -> Path:
    return Path(os.environ.get("UMBEL_HOME", ".umbel")) / "backbones" / "smollm2-135m-instruct"


@pytest.mark.smol
def test_smollm2_is_as_close_to_the_truth_as_hugging_face():
    tokens = torch.tensor(
        load_backbone(smol()).tokenizer.encode("Umbels are flower heads whose stalks rise from one point.")
    )[None]
    step = {"rows": 1, "tokens": tokens.shape[1], "want": torch.arange(tokens.shape[1])}
    with torch.no_grad():
        truth = load_backbone(smol(), dtype="fp64").decoder(tokens, whole_step(**step)).logits
        ours = load_backbone(smol(), dtype="fp32").decoder(tokens, whole_step(**step)).logits
        theirs = reference(smol())(tokens).logits[0]
        ours16 = load_backbone(smol()).decoder(tokens, whole_step(**step)).logits
        theirs16 = reference(smol(), torch.bfloat16)(tokens).logits[0]

    def worst(x):
        return (x - truth).abs().max().item()

    def rms(x):
        return (x - truth).square().mean().sqrt().item()

    assert worst(ours) <= max(2e-4, 2 * worst(theirs))
    assert rms(ours16) <= 1.25 * rms(theirs16) + 0.01
