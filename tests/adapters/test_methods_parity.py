"""Every method of PEFT, both directions, and all of them mixed in one batch."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from umbel.adapters import catalog
from umbel.adapters.peft_io import export_files, import_folder

TEXT = torch.randint(0, 256, (30,), generator=torch.Generator().manual_seed(3))
LAYERS, GROUPS, WIDTH, HIDDEN = 2, 2, 8, 32

PEFT_CONFIGS = {
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "ia3 wide": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "gate_proj", "o_proj", "down_proj"],
        feedforward_modules=["o_proj", "down_proj"],
    ),
    "llama_adapter": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=5, adapter_layers=2),
    "llama_adapter top": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
    "p_tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "dora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]
    ),
}
OURS = {
    "ia3": ("ia3", {}),
    "llama_adapter": ("llama_adapter", {"length": 5}),
    "llama_adapter top": ("llama_adapter", {"length": 3, "layers": 1}),
    "prefix": ("prefix", {"length": 5}),
    "prefix projected": ("prefix", {"length": 5, "projection": True}),
    "prompt": ("prompt", {"length": 7}),
    "p_tuning": ("p_tuning", {"length": 4}),
    "dora": ("lora", {"rank": 4, "dora": True}),
}


def hugging_face(folder: Path):
    return AutoModelForCausalLM.from_pretrained(str(folder))


@pytest.mark.parametrize("config", PEFT_CONFIGS, ids=str)
def test_a_peft_folder_gives_pefts_logits(config, square, backbone, logits_of, tmp_path):
    model = peft.get_peft_model(hugging_face(square), PEFT_CONFIGS[config]()).eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = 0.5 if "gate" in name else 0.1
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * size
    model.save_pretrained(str(tmp_path))
    adapter = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    with torch.no_grad():
        virtual = adapter.weights.num_virtual
        theirs = model(TEXT[None]).logits[0, virtual:]
    ours = logits_of([adapter], [0], [TEXT])[0]
    bare = logits_of([], [None], [TEXT])[0]
    assert (theirs - bare).abs().max() > 2e-4  # ten times the tolerance, or nothing is shown
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", OURS, ids=str)
def test_our_folder_gives_our_logits_in_peft(config, square, logits_of, made, tmp_path):
    adapter = made(*OURS[config])
    for name, data in export_files(adapter, backbone_name="tiny").items():
        (tmp_path / name).write_bytes(data)
    model = peft.PeftModel.from_pretrained(hugging_face(square), str(tmp_path)).eval()
    with torch.no_grad():
        theirs = model(TEXT[None]).logits[0, adapter.weights.num_virtual :]
    torch.testing.assert_close(logits_of([adapter], [0], [TEXT])[0], theirs, atol=2e-5, rtol=0)


MIXED = [
    ("lora", {"rank": 4}),
    ("lora", {"rank": 8, "rslora": True}),
    ("lora", {"rank": 4, "dora": True}),
    ("lora", {"rank": 64, "targets": ("v_proj",)}),
    ("llama_adapter", {"length": 5}),
    ("llama_adapter", {"length": 5, "per_head_gate": True}),
    ("prefix", {"length": 5}),
    ("prefix", {"length": 9}),
    ("prompt", {"length": 7}),
    ("p_tuning", {"length": 3}),
    ("ia3", {}),
    ("bottleneck", {"width": 6}),
    ("bottleneck", {"width": 6, "activation": "gelu"}),
]


@pytest.fixture(scope="module")
def everyone(made):
    return [made(method, options, seed=i) for i, (method, options) in enumerate(MIXED)]


@pytest.mark.parametrize("serving", [False, True], ids=["training", "serving"])
def test_in_one_batch_every_row_is_as_if_alone(serving, everyone, logits_of):
    rows = [*range(len(everyone)), None, 3, 0, 0, None]
    generator = torch.Generator().manual_seed(9)
    order = torch.randperm(len(rows), generator=generator).tolist()
    rows = [rows[i] for i in order]
    texts = [torch.randint(0, 256, (5 + 2 * i,), generator=generator) for i in range(len(rows))]
    mixed = logits_of(everyone, rows, texts, serving=serving)
    for row, text, got in zip(rows, texts, mixed, strict=True):
        alone = logits_of([] if row is None else [everyone[row]], [None if row is None else 0], [text])[0]
        torch.testing.assert_close(got, alone, atol=2e-5, rtol=0)


def test_every_adapter_of_the_mix_changes_the_answer(everyone, logits_of):
    bare = logits_of([], [None], [TEXT])[0]
    for adapter in everyone:
        assert (logits_of([adapter], [0], [TEXT])[0] - bare).abs().max() > 2e-4, adapter.method.name


@pytest.mark.parametrize("method", [name for name, method in catalog.methods().items() if method.zero_start])
def test_a_fresh_zero_start_adapter_leaves_the_logits_bit_equal(method, made, logits_of):
    """Served, in both dtypes and with every option: ``tests/engine/test_fresh_adapters.py``."""
    adapter = made(method, noise=0.0)
    assert torch.equal(logits_of([adapter], [0], [TEXT])[0], logits_of([], [None], [TEXT])[0])


@pytest.mark.parametrize("config", [*OURS, "bottleneck", "per head"], ids=str)
def test_an_export_is_imported_as_it_was(config, backbone, made, tmp_path):
    more = {"bottleneck": ("bottleneck", {}), "per head": ("llama_adapter", {"per_head_gate": True})}
    files = export_files(made(*{**OURS, **more}[config]), backbone_name="tiny")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    assert export_files(again, backbone_name="tiny") == files
