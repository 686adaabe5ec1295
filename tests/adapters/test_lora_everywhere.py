"""LoRA at the ends of the backbone and on its biases, against PEFT in both directions, on tied and untied backbones."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.lora_batch import LoraBatch
from umbel.adapters.peft_io import export_files, import_folder
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone, read_matrix
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract
from umbel.core.errors import AdapterRefused, ConfigError

GENERATE = Contract(output_head="generate")
IDS, OTHERS = [7, 1, 33, 12], [2, 7]
TOKENS = torch.randint(0, 260, (1, 30), generator=torch.Generator().manual_seed(3))
TOKENS[0, 4:12:2] = torch.tensor(IDS)  # so that the token rows are met
CASES = {
    "all biases": ({"target_modules": ["q_proj", "up_proj"], "bias": "all"}, {"bias": "all"}),
    "biases of targets": ({"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}, {"bias": "lora_only"}),
    "lora_bias": ({"target_modules": ["v_proj", "down_proj", "lm_head"], "lora_bias": True}, {"lora_bias": True}),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True}, {"rslora": True}),
    "both ends": ({"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"embed_tokens": 5}}, {}),
    "token rows": ({"target_modules": ["q_proj"], "trainable_token_indices": IDS}, {"token_rows": IDS}),
    "token rows of both": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": IDS, "lm_head": OTHERS}},
        {"token_rows": IDS, "lm_head_rows": OTHERS},
    ),
    "token rows of both, alike": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": IDS, "lm_head": IDS}},
        {"token_rows": IDS, "lm_head_rows": IDS},
    ),
    "token rows of lm_head": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": OTHERS}},
        {"lm_head_rows": OTHERS},
    ),
    "own lm_head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {"full_copies": ["lm_head"]}),
    "own embeddings": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"full_copies": ["embed_tokens"]},
    ),
    "own both": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"full_copies": ["lm_head", "embed_tokens"]},
    ),
    "dora and biases": ({"target_modules": ["q_proj", "o_proj"], "use_dora": True, "bias": "all"}, {"bias": "all"}),
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory) -> Path:
    return tiny_backbone(
        tmp_path_factory.mktemp("tiny") / "tiny", attention_bias=True, mlp_bias=True, tie_word_embeddings=request.param
    )


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


def peft_model(folder, noise=0.2, task="CAUSAL_LM", **config):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings|`lora_bias=True` was passed")
        kind = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModel
        base = kind.from_pretrained(str(folder), dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(4)  # PEFT draws A, and with some draws logits are so large that fp32's own error shows
            model = peft.get_peft_model(base, peft.LoraConfig(task_type=task, r=3, lora_alpha=6, **config))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * noise
    return model.eval()


def save(model, folder: Path, **how):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        warnings.filterwarnings("ignore", message=".*have invalid shape")  # PEFT takes lora_B.bias for a cut matrix
        model.save_pretrained(str(folder), **how)


def reopened(folder: Path, adapter: Path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings|`lora_bias=True` was passed")
        return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(folder)), str(adapter)).eval()


def imported(folder: Path, backbone):
    return import_folder(folder, backbone.shape, backbone=backbone.fingerprint, frozen=backbone.decoder.matrix)


def our_logits(backbone, adapters, rows, tokens, *, serving=False):
    batch, length = tokens.shape
    worn = fuse_all(adapters, list(backbone.decoder.layers) if serving else None)
    step = whole_step(
        wear(worn, rows, least=2 if serving else 1),
        rows=batch,
        tokens=length,
        want=torch.arange(batch * length),
        want_sites=wear(worn, [row for row in rows for _ in range(length)]),
    )
    with torch.no_grad():
        return backbone.decoder(tokens, step).logits.view(batch, length, -1)


def their_logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def made(backbone, seed=1, noise=0.2, **options):
    adapter = fresh_adapter("lora", options, GENERATE, backbone.shape, backbone=backbone.fingerprint, seed=seed)
    adapter.weights.initialise(list(backbone.decoder.layers), lambda *_: None, backbone.decoder)
    generator = torch.Generator().manual_seed(seed + 70)
    for tensor in adapter.tensors.values():
        tensor += torch.randn(tensor.shape, generator=generator) * noise
    return adapter


def options_of(case):
    theirs, own = CASES[case]
    patterns = {key: theirs[key] for key in ("rank_pattern",) if key in theirs}
    return {
        "targets": theirs["target_modules"],
        "rank": 3,
        "alpha": 6.0,
        "dora": theirs.get("use_dora", False),
        **patterns,
        **own,
    }


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("case", CASES)
def test_a_peft_folder_gives_pefts_logits(case, folder, backbone, tmp_path):
    model = peft_model(folder, **CASES[case][0])
    save(model, tmp_path)
    theirs, adapter = their_logits(model), imported(tmp_path, backbone)
    bare = our_logits(backbone, [], [None], TOKENS)
    assert (theirs - bare).abs().max() > 2e-4
    for serving in (False, True):
        ours = our_logits(backbone, [adapter], [0], TOKENS, serving=serving)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["layers.1.self_attn.q_proj", "down_proj"], "rank_pattern": {"layers.1.mlp.down_proj": 5}},
        {"target_modules": ["q_proj"], "trainable_token_indices": IDS},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["embeddings", "whole paths", "token rows", "own embeddings"],
)
def test_a_folder_of_the_body_alone_gives_pefts_hidden_states(config, folder, backbone, tmp_path):
    """PEFT's FEATURE_EXTRACTION names its modules without ``model.``, as there is no lm_head beside them."""
    model = peft_model(folder, task="FEATURE_EXTRACTION", **config)
    save(model, tmp_path)
    assert not any(".model.model." in key for key in load_file(weights(tmp_path)))
    adapter = imported(tmp_path, backbone)
    with torch.no_grad():
        theirs = model(TOKENS).last_hidden_state
        bare, ours = (
            backbone.decoder(TOKENS, whole_step(wear(fuse_all(worn), rows), rows=1, tokens=30)).hidden
            for worn, rows in (([], [None]), ([adapter], [0]))
        )
    assert (theirs - bare).abs().max() > 2e-4
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_our_folder_gives_our_logits_in_peft_and_is_read_as_it_was(case, folder, backbone, tmp_path):
    adapter = made(backbone, **options_of(case))
    files = export_files(adapter, backbone_name="tiny")
    write(tmp_path, files)
    ours = our_logits(backbone, [adapter], [0], TOKENS)
    torch.testing.assert_close(ours, their_logits(reopened(folder, tmp_path)), atol=2e-5, rtol=0)
    again = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    assert export_files(again, backbone_name="tiny") == files


@pytest.mark.parametrize("serving", [False, True], ids=["training", "serving"])
def test_a_row_feels_only_its_own_embeddings_biases_and_copies(serving, backbone):
    adapters = [made(backbone, seed, **options_of(case)) for seed, case in enumerate(CASES)]
    adapters += [made(backbone, 50, **options_of("token rows")), made(backbone, 51, rank=4)]
    order = [*range(len(adapters)), None, 5, 3, 3]
    tokens = torch.randint(0, 40, (len(order), 9), generator=torch.Generator().manual_seed(8))
    mixed = our_logits(backbone, adapters, order, tokens, serving=serving)
    for row, index in enumerate(order):
        alone = our_logits(backbone, adapters, [index], tokens[row : row + 1], serving=serving)[0]
        torch.testing.assert_close(mixed[row], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_adapter_answers_as_the_backbone(case, backbone):
    fresh = made(backbone, noise=0.0, **options_of(case))
    ours, bare = our_logits(backbone, [fresh], [0], TOKENS), our_logits(backbone, [], [None], TOKENS)
    torch.testing.assert_close(ours, bare, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_gets_a_gradient(case, backbone):
    adapter = made(backbone, **options_of(case))
    for tensor in adapter.tensors.values():
        tensor.requires_grad_()
    worn = fuse_all([adapter])
    step = whole_step(wear(worn, [0]), rows=1, tokens=30, want=torch.arange(30), want_sites=wear(worn, [0] * 30))
    backbone.decoder(TOKENS, step).logits.logsumexp(-1).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in adapter.tensors.values())


def test_plain_lora_is_never_asked_for_ends_or_biases(backbone):
    plain = fuse_all([made(backbone, rank=4, targets=("q_proj", "lm_head"), dora=False)])
    assert LoraBatch.kind_for(plain[0].stack) is LoraBatch
    for case in CASES:
        assert LoraBatch.kind_for(fuse_all([made(backbone, **options_of(case))])[0].stack) is not LoraBatch


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj"]], ids=["beside LoRA", "asked for"])
def test_a_copy_of_the_backbones_own_matrices_is_let_be(targets, folder, backbone, tmp_path):
    """``save_embedding_layers`` writes them; without the check every such folder would be refused."""
    model = peft_model(folder, target_modules=targets)
    save(model, tmp_path, save_embedding_layers=True)
    assert any(key.endswith("embed_tokens.weight") or "base_layer" in key for key in load_file(weights(tmp_path)))
    ours = our_logits(backbone, [imported(tmp_path, backbone)], [0], TOKENS)
    torch.testing.assert_close(ours, their_logits(model), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "change", [lambda t: t + 0.5, lambda t: torch.cat([t, t[:4]])], ids=["other values", "resized"]
)
def test_another_models_embeddings_are_refused_by_name(change, folder, backbone, tmp_path):
    save(peft_model(folder, target_modules=["q_proj"]), tmp_path, save_embedding_layers=True)
    found = load_file(weights(tmp_path))
    found["base_model.model.lm_head.weight"] = change(found["base_model.model.lm_head.weight"]).contiguous()
    save_file(found, weights(tmp_path))
    with pytest.raises(AdapterRefused) as refused:
        imported(tmp_path, backbone)
    assert refused.value.code == "other_embeddings"
    assert "lm_head" in str(refused.value)
    assert 'modules_to_save=["lm_head"]' in str(refused.value.hint)


def test_the_checkpoints_matrices_are_read_without_a_decoder(folder, backbone):
    for name in ("embed_tokens", "lm_head"):
        assert torch.equal(read_matrix(folder, name), backbone.decoder.matrix(name))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r".*layers\.1\.self_attn\.[qv]_proj"},
        {"target_modules": ["layers.0.self_attn.q_proj", "down_proj"]},
        {"target_modules": ["q_proj", "v_proj", "lm_head", "embed_tokens"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": r".*\.0\..*", "layers_to_transform": [0, 1]},
        {
            "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": ["embed_tokens", "lm_head"],
            "ensure_weight_tying": True,
        },
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ],
    ids=["pattern", "whole path", "layers", "exclude", "exclude by pattern", "tied copies", "tied LoRA"],
)
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`")
def test_modules_are_chosen_by_pefts_own_rules(config, folder, backbone, tmp_path):
    model = peft_model(folder, **config)
    save(model, tmp_path)
    ours = our_logits(backbone, [imported(tmp_path, backbone)], [0], TOKENS)
    torch.testing.assert_close(ours, their_logits(model), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"token_rows": [1, 260]}, "unknown_token"),
        ({"token_rows": [1, 1]}, "invalid_config"),
        ({"token_rows": [1], "full_copies": ["embed_tokens"]}, "conflicting_places"),
        ({"targets": ["q_proj", "embed_tokens"], "token_rows": [1]}, "conflicting_places"),
        ({"targets": ["lm_head"], "full_copies": ["lm_head"]}, "conflicting_places"),
        ({"targets": ["embed_tokens"], "layers": [1]}, "unknown_target"),
        ({"targets": ["layers.7.self_attn.q_proj"]}, "unknown_target"),
        ({"targets": ["lm_head"], "dora": True}, "unsupported_config_key"),
    ],
)
def test_what_cannot_be_is_refused_before_training(options, code, backbone):
    with pytest.raises(ConfigError) as refused:
        made(backbone, **options)
    assert refused.value.code == code


@pytest.mark.parametrize("value", [["a"], "7", {"q_proj": [1]}, {"lm_head": 3}])
def test_token_indices_of_another_form_are_refused(value, folder, backbone, tmp_path):
    save(peft_model(folder, target_modules=["q_proj"]), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "trainable_token_indices": value}))
    with pytest.raises(AdapterRefused, match="trainable_token_indices"):
        imported(tmp_path, backbone)


def test_one_end_more_is_another_digest(backbone):
    """Equal products with other token rows must never be taken for one version."""
    plain = made(backbone, **options_of("token rows"))
    other = replace(plain, weights=type(plain.weights)(plain.weights.config, backbone.shape, plain.weights.tensors))
    key = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    other.weights.tensors[key] = other.weights.tensors[key] + 1.0
    assert export_files(plain, backbone_name="t") != export_files(other, backbone_name="t")


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@pytest.mark.smol
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["v_proj"], "trainable_token_indices": [260, 3575, 282, 4649]},
    ],
    ids=["both ends", "token rows"],
)
def test_on_smollm2_both_ends_are_as_near_to_the_truth_as_pefts(config, tmp_path):
    """Correctness rule 1; the truth is our own decoder in float64. SmolLM2's ends are tied."""
    folder = Path(os.environ["UMBEL_HOME"]) / "backbones" / "smollm2-135m-instruct"
    exact, ours = load_backbone(folder, dtype="fp64"), load_backbone(folder, dtype="fp32")
    tokens = torch.tensor([exact.tokenizer.encode("The capital of France is the city of Paris, on the river Seine")])
    model = peft_model(folder, noise=0.02, **config)
    save(model, tmp_path, save_embedding_layers=False)
    with torch.no_grad():
        theirs = model(tokens).logits
        with model.disable_adapter():
            bare = model(tokens).logits
    adapter = imported(tmp_path, ours)
    truth = our_logits(exact, [doubled(adapter)], [0], tokens)
    assert (truth - bare).abs().max() > 0.1
    bound = max(2e-4, 2 * float((theirs - truth).abs().max()))
    assert (our_logits(ours, [adapter], [0], tokens) - truth).abs().max() <= bound
    assert (theirs - truth).abs().max() < 2e-3


def doubled(adapter):
    weights = adapter.weights
    tensors = {name: tensor.double() for name, tensor in weights.tensors.items()}
    return replace(adapter, weights=type(weights)(weights.config, weights.shape, tensors))
