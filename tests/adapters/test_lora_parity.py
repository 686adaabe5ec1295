"""LoRA and classifiers against PEFT, both directions: its folder here, ours in PEFT."""

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.head import pool
from umbel.adapters.peft_io import export_files, import_folder
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "q and v": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all linears": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "rslora": {"r": 16, "lora_alpha": 16, "target_modules": ALL, "use_rslora": True},
    "lm_head": {"r": 4, "lora_alpha": 8, "target_modules": ["down_proj", "lm_head"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"k_proj": 32, "layers.0.mlp.up_proj": 3},
    },
    "one layer": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
}
GENERATE = Contract(output_head="generate")
TOKENS = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("tiny") / "tiny", attention_bias=True, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


def randomised(model):
    """PEFT starts B at zero; a parity test on that would prove nothing."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "score" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def our_logits(backbone, adapters, rows, tokens):
    batch, length = tokens.shape
    worn = fuse_all(adapters)
    want = torch.arange(batch * length)
    want_sites = wear(worn, [row for row in rows for _ in range(length)])
    step = whole_step(wear(worn, rows), rows=batch, tokens=length, want=want, want_sites=want_sites)
    with torch.no_grad():
        return backbone.decoder(tokens, step).logits.view(batch, length, -1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_peft_folder_gives_pefts_logits(config, folder, backbone, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(str(folder))
    bare = base(TOKENS).logits.detach()
    model = randomised(peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[config])))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapter = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    with torch.no_grad():
        theirs = model(TOKENS).logits
    assert (theirs - bare).abs().max() > 2e-4  # ten times the tolerance, or nothing is shown
    torch.testing.assert_close(our_logits(backbone, [adapter], [0], TOKENS), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_our_folder_gives_our_logits_in_peft(config, folder, backbone, tmp_path):
    options = our_options(CONFIGS[config])
    adapter = noisy(made(backbone, options))
    write(tmp_path, export_files(adapter, backbone_name="tiny"))
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(folder)), str(tmp_path)).eval()
    with torch.no_grad():
        theirs = model(TOKENS).logits
    torch.testing.assert_close(our_logits(backbone, [adapter], [0], TOKENS), theirs, atol=2e-5, rtol=0)


def test_a_classifier_travels_both_ways(folder, backbone, tmp_path):
    labels = ("negative", "neutral", "positive")
    base = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=3)
    model = randomised(peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", **CONFIGS["all linears"])))
    model.save_pretrained(str(tmp_path / "theirs"))
    with torch.no_grad():
        theirs = model(TOKENS).logits
    adapter = import_folder(tmp_path / "theirs", backbone.shape, backbone=backbone.fingerprint, labels=labels)
    torch.testing.assert_close(classify(backbone, adapter, TOKENS), theirs, atol=2e-5, rtol=0)

    write(tmp_path / "ours", export_files(adapter, backbone_name="tiny"))
    fresh = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=3)
    again = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "ours")).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, theirs, atol=2e-5, rtol=0)


def test_an_export_is_imported_as_it_was(backbone, tmp_path):
    contract = Contract(output_head="classify", labels=("a", "b"), template="Text: {text}\nLabel:", max_length=64)
    adapter = noisy(made(backbone, {"rank": 3, "rank_pattern": {"q_proj": 5}}, contract))
    files = export_files(adapter, backbone_name="tiny")
    write(tmp_path, files)
    again = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    assert export_files(again, backbone_name="tiny") == files
    assert again.contract == contract


def test_old_readers_find_no_key_they_do_not_know(backbone):
    adapter = made(backbone, {})
    written = json.loads(export_files(adapter, backbone_name="tiny")["adapter_config.json"])
    old = {"r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out"}
    assert written.keys() <= old | {"peft_type", "task_type", "base_model_name_or_path", "inference_mode"}


@pytest.mark.parametrize("order", [[0, 1, None, 2, 1], [2, None, 0, 0, 0], [None, None, 1, 1, 2]])
def test_a_row_feels_only_its_own_adapter(order, backbone):
    contract = Contract(output_head="generate")
    options = [{"rank": 4}, {"rank": 4, "rslora": True, "alpha": 9.0}, {"rank": 2, "targets": ("v_proj", "lm_head")}]
    adapters = [noisy(made(backbone, o, contract, seed=i)) for i, o in enumerate(options)]
    tokens = torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(8))
    mixed = our_logits(backbone, adapters, order, tokens)
    for row, index in enumerate(order):
        alone = our_logits(backbone, adapters, [index], tokens[row : row + 1])[0]
        torch.testing.assert_close(mixed[row], alone, atol=2e-5, rtol=0)


def test_a_fresh_adapter_leaves_the_logits_bit_equal(backbone):
    adapter = made(backbone, {"targets": (*ALL, "lm_head")})
    assert torch.equal(our_logits(backbone, [adapter], [0], TOKENS), our_logits(backbone, [], [None], TOKENS))


def classify(backbone, adapter, tokens):
    rows, length = tokens.shape
    with torch.no_grad():
        hidden = backbone.decoder(
            tokens, whole_step(wear(fuse_all([adapter]), [0] * rows), rows=rows, tokens=length)
        ).hidden
        pooled = pool(
            hidden, torch.full((rows,), length), torch.zeros(rows, dtype=torch.long), adapter.head.config.pooling
        )
        return adapter.head.logits(pooled)


def noisy(adapter):
    generator = torch.Generator().manual_seed(7)
    for tensor in adapter.tensors.values():
        tensor += torch.randn(tensor.shape, generator=generator) * 0.1
    return adapter


def made(backbone, options, contract=GENERATE, seed=1):
    return fresh_adapter("lora", options, contract, backbone.shape, backbone=backbone.fingerprint, seed=seed)


def our_options(theirs):
    names = {
        "r": "rank",
        "lora_alpha": "alpha",
        "target_modules": "targets",
        "use_rslora": "rslora",
        "layers_to_transform": "layers",
    }
    return {names.get(key, key): value for key, value in theirs.items()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
