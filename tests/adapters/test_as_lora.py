"""PEFT's other methods as LoRA: every type that is said to be convertible is, and nothing else is let through."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from umbel.adapters import catalog
from umbel.adapters.as_lora import CONVERTIBLE, PROBES, WHY_NOT, convert
from umbel.adapters.peft_io import import_folder
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import AdapterRefused

TARGETS = ["q_proj", "down_proj"]
SIZES = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "r": 4},
    "WAVEFT": {"n_frequency": 50},
}
"""What a type needs on layers as small as these."""
TOKENS = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(3))
PROBED = [list(text.encode())[:12] for text in PROBES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("tiny") / "tiny", attention_bias=True)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


def trained(folder, into, kind, task="CAUSAL_LM", noise=0.1, **options):
    """A saved PEFT folder with noise on all that this type trains, and its logits."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    options = {"target_modules": TARGETS, **SIZES.get(kind, {}), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for people who train with these
        if task == "CAUSAL_LM":
            base = AutoModelForCausalLM.from_pretrained(str(folder))
        else:
            base = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=3)
        model = peft.get_peft_model(base, config(task_type=task, **options)).eval()
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=generator) * noise
        model.save_pretrained(str(into), save_embedding_layers=False)
        with torch.no_grad():
            return model(TOKENS).logits


def converted(folder, backbone, source, into, **how):
    into.mkdir()
    found = convert(source, folder, into, shape=backbone.shape, probes=PROBED, **how)
    return found, import_folder(into, backbone.shape, backbone=backbone.fingerprint)


def our_logits(backbone, adapter):
    step = whole_step(
        wear(fuse_all([adapter]), [0]),
        rows=1,
        tokens=20,
        want=torch.arange(20),
        want_sites=wear(fuse_all([adapter]), [0] * 20),
    )
    with torch.no_grad():
        return backbone.decoder(TOKENS, step).logits


@pytest.mark.parametrize("kind", CONVERTIBLE)
def test_at_full_rank_it_answers_as_pefts_own(kind, folder, backbone, tmp_path):
    theirs = trained(folder, tmp_path / "theirs", kind)
    found, adapter = converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours", rank=64, max_error=1e-4)
    bare = (
        our_logits(backbone, adapter) * 0
        + backbone.decoder(TOKENS, whole_step(rows=1, tokens=20, want=torch.arange(20))).logits
    )
    assert (theirs[0] - bare).abs().max() > 2e-3
    torch.testing.assert_close(our_logits(backbone, adapter), theirs[0], atol=2e-4, rtol=0)
    assert found.peft_type == kind
    assert found.logit_error < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "init_lora_weights": "pissa"},
        {"r": 4, "init_lora_weights": "olora"},
        {"r": 4, "target_modules": ["lm_head"], "use_dora": True},
        {"r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    ],
    ids=["pissa", "olora", "dora on lm_head", "plain"],
)
def test_forms_of_lora_that_are_not_read_as_they_are_can_be_converted(options, folder, backbone, tmp_path):
    """PiSSA and OLoRA move the backbone's own weights before they add to them."""
    theirs = trained(folder, tmp_path / "theirs", "LORA", **options)
    _, adapter = converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours", max_error=1e-4)
    torch.testing.assert_close(our_logits(backbone, adapter), theirs[0], atol=2e-4, rtol=0)


def test_without_a_rank_the_smallest_within_the_bound_is_taken(folder, backbone, tmp_path):
    """LoHa of rank 2 is a product of two rank-2 matrices, so its change has rank 4."""
    trained(folder, tmp_path / "theirs", "LOHA", r=2)
    found, adapter = converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours", max_error=1e-3)
    assert found.rank == adapter.weights.config.rank == 4
    assert max(found.errors.values()) <= 1e-3
    assert set(found.errors) == {
        f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")
    }


def test_a_rank_too_small_is_refused_with_the_one_that_would_do(folder, backbone, tmp_path):
    trained(folder, tmp_path / "theirs", "OFT", noise=0.3)
    with pytest.raises(AdapterRefused) as refused:
        converted(folder, backbone, tmp_path / "theirs", tmp_path / "small", rank=2)
    assert refused.value.code == "conversion_too_far"
    needed = int(refused.value.hint.split("--rank ")[1].split()[0])
    found, _ = converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours", rank=needed, max_error=0.05)
    assert needed > 2
    assert found.worst[1] <= 0.05


def test_a_classifiers_head_comes_along(folder, backbone, tmp_path):
    theirs = trained(folder, tmp_path / "theirs", "LOKR", task="SEQ_CLS")
    into = tmp_path / "ours"
    into.mkdir()
    convert(tmp_path / "theirs", folder, into, shape=backbone.shape, probes=PROBED, max_error=1e-4)
    adapter = import_folder(into, backbone.shape, backbone=backbone.fingerprint, labels=("a", "b", "c"))
    with torch.no_grad():
        hidden = backbone.decoder(TOKENS, whole_step(wear(fuse_all([adapter]), [0]), rows=1, tokens=20)).hidden
        torch.testing.assert_close(adapter.head.logits(hidden[:, -1]), theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options", "code"),
    [
        ("LN_TUNING", {"target_modules": ["input_layernorm"]}, "unsupported_method"),
        ("LILY", {}, "unsupported_method"),
        ("LOHA", {"modules_to_save": ["lm_head"]}, "not_convertible"),
        ("LORA", {"trainable_token_indices": [1, 2]}, "not_convertible"),
        ("LORA", {"target_modules": ["embed_tokens"]}, "not_convertible"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_is_no_change_of_a_linear_is_refused_by_name(kind, options, code, folder, backbone, tmp_path):
    trained(folder, tmp_path / "theirs", kind, **options)
    with pytest.raises(AdapterRefused) as refused:
        converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours")
    assert refused.value.code == code


def test_a_linear_that_is_not_affine_is_found_out(folder, backbone, tmp_path, monkeypatch):
    """LILY's change depends on the token; were it listed by mistake, it would be refused all the same."""
    monkeypatch.setattr("umbel.adapters.as_lora.CONVERTIBLE", ("LILY",))
    trained(folder, tmp_path / "theirs", "LILY", noise=0.5)
    with pytest.raises(AdapterRefused, match="not affine"):
        converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours")


def test_tensors_that_peft_would_ignore_or_miss_are_refused(folder, backbone, tmp_path):
    trained(folder, tmp_path / "theirs", "LOHA")
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    whole = load_file(file)
    gone = dict(list(whole.items())[1:])
    for changed, code in ((gone, "missing_tensors"), ({**whole, "strange": torch.ones(1)}, "unexpected_tensors")):
        save_file(changed, file)
        with pytest.raises(AdapterRefused) as refused:
            converted(folder, backbone, tmp_path / "theirs", tmp_path / code)
        assert refused.value.code == code


def test_a_config_that_peft_cannot_use_is_refused_with_pefts_words(folder, backbone, tmp_path):
    trained(folder, tmp_path / "theirs", "LOHA")
    config = tmp_path / "theirs" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["nothing"]}))
    with pytest.raises(AdapterRefused) as refused:
        converted(folder, backbone, tmp_path / "theirs", tmp_path / "ours")
    assert refused.value.code == "peft_refused"


def test_every_type_of_peft_is_native_convertible_or_refused_for_a_reason():
    """A new release of PEFT brings new types; each needs a decision, or the table in docs/methods.md is wrong."""
    native = {method.peft_type for method in catalog.methods().values() if method.peft_type}
    decided = [*native - {"LORA"}, *CONVERTIBLE, *WHY_NOT]
    assert sorted(decided) == sorted(kind.value for kind in peft.PeftType)
