"""Versions asked through the engine: each row's answer is the one that a whole forward pass gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.head import pool
from umbel.adapters.peft_io import export_files
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.texts import encode_texts
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract, Decoding
from umbel.core.errors import DataError, UsageError
from umbel.core.settings import Settings
from umbel.evaluation.answering import Asker
from umbel.evaluation.questions import load_questions
from umbel.evaluation.scoring import interval, score
from umbel.registry import Registry

TEXTS = ["good", "bad day", "so so, really", "x", "quite long a text, which is cut at some place"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny") / "tiny"))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    with Registry.open(Settings.load()) as opened:
        yield opened


def publish(registry, backbone, contract, name, method="lora"):
    adapter = fresh_adapter(method, {}, contract, backbone.shape, backbone=backbone.fingerprint, seed=3)
    for tensor in adapter.tensors.values():
        tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4)) * 0.3
    files = export_files(adapter, backbone_name="tiny")
    version = registry.publish(
        files, name=name, method=method, config=adapter.config, contract=contract, backbone=backbone.fingerprint
    )
    return adapter, version


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def alone(backbone, adapter, text):
    ids = encode_texts(backbone.tokenizer, adapter.contract, [text])[0].ids
    step = whole_step(wear(fuse_all([adapter]), [0]), rows=1, tokens=len(ids))
    with torch.no_grad():
        hidden = backbone.decoder(torch.tensor([ids]), step).hidden
        pooled = pool(hidden, torch.tensor([len(ids)]), torch.tensor([0]), adapter.head.pooling)
        return adapter.head.logits(pooled)[0]


def test_a_classifiers_answers_are_those_of_whole_forward_passes(registry, backbone, tmp_path):
    contract = Contract(output_head="classify", labels=("a", "b", "c"), max_length=24, template="say {text}")
    adapter, version = publish(registry, backbone, contract, "mood")
    data = write(tmp_path / "d.jsonl", [{"text": text, "label": "abc"[i % 3]} for i, text in enumerate(TEXTS)])
    questions = load_questions(data, contract.output_head, registry.settings)
    answers = Asker(backbone, registry).ask(version.digest, contract, questions)
    logits = torch.stack([alone(backbone, adapter, text) for text in TEXTS])
    np.testing.assert_allclose(answers.probabilities, logits.softmax(-1).numpy(), atol=1e-5)
    assert answers.outputs == [contract.labels[i] for i in logits.argmax(-1)]
    report = score(questions, answers)
    assert report.primary == "accuracy"
    right = [said == "abc"[i % 3] for i, said in enumerate(answers.outputs)]
    assert report.main.items.tolist() == right
    assert set(report.summary) == {"accuracy", "macro_f1", "log_loss", "brier", "calibration_error"}


def test_a_regressor_is_scored_by_its_error(registry, backbone, tmp_path):
    contract = Contract(output_head="regress")
    adapter, version = publish(registry, backbone, contract, "stars", method="bottleneck")
    data = write(tmp_path / "d.jsonl", [{"text": text, "value": i / 2} for i, text in enumerate(TEXTS)])
    questions = load_questions(data, contract.output_head, registry.settings)
    report = score(questions, Asker(backbone, registry).ask(version.digest, contract, questions))
    truth = np.array([alone(backbone, adapter, text).item() for text in TEXTS])
    assert report.summary["rmse"] == pytest.approx(np.sqrt(((truth - np.arange(5) / 2) ** 2).mean()), rel=1e-4)


def test_a_taggers_words_are_read_at_their_first_token(registry, backbone, tmp_path):
    contract = Contract(output_head="tag", labels=("O", "X"))
    _, version = publish(registry, backbone, contract, "names")
    words = ["Ann", "met", "Bo"]
    data = write(tmp_path / "d.jsonl", [{"tokens": words, "tags": ["X", "O", "X"]}])
    questions = load_questions(data, contract.output_head, registry.settings)
    answers = Asker(backbone, registry).ask(version.digest, contract, questions)
    assert len(answers.outputs[0].split()) == 3
    assert score(questions, answers).main.value == np.mean(
        [said == gold for said, gold in zip(answers.outputs[0].split(), "XOX", strict=True)]
    )


def test_generation_stops_where_the_contract_says_and_is_the_same_when_asked_again(registry, backbone, tmp_path):
    contract = Contract(output_head="generate", decoding=Decoding(max_tokens=7))
    _, version = publish(registry, backbone, contract, "talk")
    data = write(tmp_path / "d.jsonl", [{"prompt": text, "completion": "yes"} for text in TEXTS])
    questions = load_questions(data, contract.output_head, registry.settings)
    asker = Asker(backbone, registry)
    first, again = (asker.ask(version.digest, contract, questions).outputs for _ in range(2))
    assert first == again
    assert 0 < asker.engine.stats().generated_tokens <= 2 * 7 * len(TEXTS)
    bare = asker.ask(None, Contract(output_head="generate"), questions, most=7).outputs
    assert bare != first


def test_a_prompt_that_is_too_long_names_its_line(registry, backbone, tmp_path):
    contract = Contract(output_head="generate", max_length=5)
    data = write(tmp_path / "d.jsonl", [{"prompt": "ok", "completion": "y"}, {"prompt": "too long", "completion": "y"}])
    questions = load_questions(data, contract.output_head, registry.settings)
    with pytest.raises(DataError, match="line 2: the prompt has 8 tokens, at most 5 fit"):
        Asker(backbone, registry).ask(None, contract, questions)


def test_a_metric_of_another_head_is_refused_with_those_that_suit(registry, backbone, tmp_path):
    contract = Contract(output_head="classify", labels=("a", "b"))
    _, version = publish(registry, backbone, contract, "mood")
    questions = load_questions(
        write(tmp_path / "d.jsonl", [{"text": "x", "label": "a"}]), contract.output_head, registry.settings
    )
    answers = Asker(backbone, registry).ask(version.digest, contract, questions)
    with pytest.raises(UsageError, match="accuracy, macro_f1"):
        score(questions, answers, metric="rmse")


def test_the_suite_is_what_is_asked_and_what_is_right(registry, tmp_path):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    contract = Contract(output_head="classify", labels=("a", "b"))
    suites = {
        load_questions(write(tmp_path / f"{i}.jsonl", some), contract.output_head, registry.settings).suite
        for i, some in enumerate([rows, [{**row, "id": 1} for row in rows], [rows[0], {"text": "y", "label": "a"}]])
    }
    assert len(suites) == 2


def test_an_interval_holds_the_mean(registry, backbone, tmp_path):
    contract = Contract(output_head="classify", labels=("a", "b"))
    _, version = publish(registry, backbone, contract, "mood")
    data = write(tmp_path / "d.jsonl", [{"text": f"{i} is it", "label": "ab"[i % 2]} for i in range(60)])
    questions = load_questions(data, contract.output_head, registry.settings)
    report = score(questions, Asker(backbone, registry).ask(version.digest, contract, questions))
    low, high = interval(report.main)
    assert low < report.main.value < high
    assert interval(report.scores["macro_f1"]) is None
