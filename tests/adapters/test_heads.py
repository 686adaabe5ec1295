"""Output heads against PEFT and Hugging Face, and pooling under padding on every method."""

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.head import HeadConfig, pool
from umbel.adapters.peft_io import export_files, import_folder
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError

TEXT = torch.randint(0, 256, (21,), generator=torch.Generator().manual_seed(3))
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def hidden_of(backbone, adapters, rows, texts):
    """Hidden states [B,T,H], lengths and virtual tokens of a padded batch."""
    worn = [adapters[row] for row in rows]
    virtual = torch.tensor([a.weights.num_virtual for a in worn])
    reserved = [torch.cat([torch.zeros(int(v), dtype=torch.long), t]) for v, t in zip(virtual, texts, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(reserved, batch_first=True, padding_value=258)
    past = torch.tensor([a.weights.num_past for a in worn])
    step = whole_step(wear(fuse_all(adapters), rows), rows=len(rows), tokens=padded.shape[1], offsets=past)
    with torch.no_grad():
        return backbone.decoder(padded, step).hidden, torch.tensor([len(t) for t in reserved]), virtual


def answer(backbone, adapter, text=TEXT):
    hidden, lengths, virtual = hidden_of(backbone, [adapter], [0], [text])
    pooling = adapter.head.pooling
    pooled = hidden[0, virtual[0] :] if pooling == "tokens" else pool(hidden, lengths, virtual, pooling)
    return adapter.head.logits(pooled)


def trained(model):
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "score" in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


@pytest.mark.parametrize("labels", [(), ("O", "PER", "LOC")], ids=["regression", "tags"])
def test_pefts_regressor_and_tagger_travel_both_ways(labels, square, backbone, tmp_path):
    kind, task = (
        (AutoModelForTokenClassification, "TOKEN_CLS") if labels else (AutoModelForSequenceClassification, "SEQ_CLS")
    )
    base = kind.from_pretrained(str(square), num_labels=len(labels) or 1)
    model = trained(peft.get_peft_model(base, peft.LoraConfig(task_type=task, **LORA)))
    model.save_pretrained(str(tmp_path / "theirs"))
    adapter = import_folder(tmp_path / "theirs", backbone.shape, backbone=backbone.fingerprint, labels=labels)
    assert adapter.contract.output_head == ("tag" if labels else "regress")
    with torch.no_grad():
        theirs = model(TEXT[None]).logits[0]
    torch.testing.assert_close(answer(backbone, adapter).view_as(theirs), theirs, atol=2e-5, rtol=0)

    (tmp_path / "ours").mkdir()
    for name, data in export_files(adapter, backbone_name="tiny").items():
        (tmp_path / "ours" / name).write_bytes(data)
    fresh = kind.from_pretrained(str(square), num_labels=len(labels) or 1)
    with torch.no_grad():
        again = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "ours")).eval()(TEXT[None]).logits[0]
    torch.testing.assert_close(again, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["ia3", "prefix", "prompt", "p_tuning"])
def test_a_classifier_on_other_methods_is_pefts_on_one_unpadded_row(method, made, square, backbone, tmp_path):
    """One row at a time, since PEFT pools prompt methods on padding."""
    adapter = made(method, contract=Contract(output_head="classify", labels=("a", "b", "c")))
    for name, data in export_files(adapter, backbone_name="tiny").items():
        (tmp_path / name).write_bytes(data)
    base = AutoModelForSequenceClassification.from_pretrained(str(square), num_labels=3)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        theirs = model(input_ids=TEXT[None], attention_mask=torch.ones(1, len(TEXT), dtype=torch.long)).logits
    torch.testing.assert_close(answer(backbone, adapter), theirs, atol=2e-5, rtol=0)


METHODS = ["lora", "llama_adapter", "prefix", "prompt", "p_tuning", "ia3", "bottleneck", "none"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_is_right_under_padding_on_every_method(pooling, made, backbone):
    contract = Contract(output_head="regress")
    adapters = [made(method, contract=contract, seed=i) for i, method in enumerate(METHODS)]
    texts = [torch.arange(3 * i, 8 + 5 * i) for i in range(len(METHODS))]
    hidden, lengths, virtual = hidden_of(backbone, adapters, list(range(len(METHODS))), texts)
    together = pool(hidden, lengths, virtual, pooling)
    for i, adapter in enumerate(adapters):
        alone = pool(*hidden_of(backbone, [adapter], [0], [texts[i]]), pooling)[0]
        torch.testing.assert_close(together[i], alone, atol=2e-5, rtol=0)


def test_the_mean_has_no_part_of_padding_or_virtual_tokens():
    hidden = torch.tensor([[[9.0], [1.0], [3.0], [float("nan")]]])
    assert pool(hidden, torch.tensor([3]), torch.tensor([1]), "mean").item() == 2.0


def test_a_few_connected_layers_are_the_formula_and_stay_beside_pefts_file(made, backbone, tmp_path):
    contract = Contract(output_head="classify", labels=("a", "b"))
    head = HeadConfig(depth=2, width=5, activation="tanh")
    adapter = fresh_adapter("lora", {}, contract, backbone.shape, backbone=backbone.fingerprint, seed=1, head=head)
    for tensor in adapter.tensors.values():
        tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    x = torch.randn(3, backbone.shape.hidden)
    t = adapter.head.tensors
    inner = torch.tanh(x @ t["score_layers.0.weight"].T + t["score_layers.0.bias"])
    inner = torch.tanh(inner @ t["score_layers.1.weight"].T + t["score_layers.1.bias"])
    torch.testing.assert_close(adapter.head.logits(x), inner @ t["score.weight"].T)
    files = export_files(adapter, backbone_name="tiny")
    assert "umbel_extra.safetensors" in files
    assert b"score" not in files["adapter_model.safetensors"]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    assert torch.equal(again.head.logits(x), adapter.head.logits(x))


def test_an_embedding_has_length_one_and_needs_no_tensors(made, backbone):
    adapter = made("lora", contract=Contract(output_head="embed"))
    assert adapter.head.tensors == {}
    assert adapter.head.pooling == "mean"
    torch.testing.assert_close(answer(backbone, adapter).norm(dim=-1), torch.ones(1))


CONTRADICTIONS = [
    ("classify", {"outputs": 5}),
    ("regress", {"outputs": 2}),
    ("tag", {"outputs": 1}),
    ("classify", {"pooling": "tokens"}),
    ("embed", {"pooling": "tokens"}),
]


@pytest.mark.parametrize(("head", "config"), CONTRADICTIONS)
def test_a_head_that_contradicts_its_contract_is_an_error(head, config, backbone):
    labels = () if head in ("regress", "embed") else ("a", "b")
    contract = Contract(output_head=OutputHead(head), labels=labels)
    with pytest.raises(ConfigError):
        fresh_adapter("none", {}, contract, backbone.shape, backbone="", seed=0, head=HeadConfig(**config))
