"""A judgement beside what can be had without training."""

import json

import pytest

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.settings import Settings
from umbel.evaluation.answering import Asker
from umbel.evaluation.held import holding
from umbel.evaluation.judge import constant_answer, judge
from umbel.evaluation.questions import questions_of
from umbel.training import fit
from umbel.training.taskfile import task_of

FORMS = {
    "classify": [{"text": f"{'good' if i % 3 else 'bad'} thing {i}", "label": "ab"[i % 3 == 0]} for i in range(90)],
    "regress": [{"text": "up " * (i % 5) + f"end {i}", "value": i % 5} for i in range(90)],
    "tag": [{"tokens": ["see", f"Ann{i}", "run"], "tags": ["O", "N", "O"]} for i in range(90)],
    "generate": [{"prompt": f"{i} ->", "completion": f" {i % 2}"} for i in range(90)],
    "embed": [{"text": f"{a}{b}", "positive": f"{b}{a}!"} for a in "abcdefghij" for b in "qrstuvwxy"],
    "several": [
        {"text": f"{'red ' * (i % 2)}thing {i}", "label": ["red"] * (i % 2) + ["big"] * (i % 3 == 0)} for i in range(90)
    ],
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("judge") / "tiny"))


@pytest.mark.parametrize("form", FORMS)
def test_every_head_is_judged_beside_its_baselines(backbone, tmp_path, form):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORMS[form]))
    head = "classify" if form == "several" else form
    task = task_of({"name": form, "data": str(path), "task": head, "steps": 3, "test_fraction": 0.2})
    (trained,) = fit(backbone, [task], settings=Settings.load(tmp_path / "home"))
    rows = trained.prepared.test
    questions = questions_of(rows, trained.adapter.contract.output_head, trained.prepared.metric, "rows/test")
    with holding() as held:
        asker = Asker(backbone, held)
        found = judge(
            asker, held.hold(trained.adapter), trained.adapter.contract, questions, trained.prepared.splits.train
        )
        asker.close()
    finding = found.finding(form)
    assert finding.rows == len(rows) == len(found.report.outputs)
    assert finding.metric == trained.prepared.metric
    names = list(finding.baselines)
    assert names[0].startswith('always "') == (head != "embed")
    assert ("the bare backbone" in names) == (head in ("generate", "embed"))
    assert all(sentence.startswith("against ") for sentence in finding.sentences)
    if finding.low is not None:
        assert finding.low <= finding.value <= finding.high


def test_the_constant_is_chosen_on_training_rows(tmp_path):
    from umbel.core.contract import Contract
    from umbel.training.data.rows import LabelledRow, PromptRow, ValuedRow

    def questions(rows, head, metric):
        return questions_of(rows, head, metric, "x")

    labels = Contract(output_head="classify", labels=("a", "b"))
    train = [LabelledRow(i, "t", (label,), False) for i, label in enumerate("aabbb")]
    assert constant_answer(questions(train[:1], labels.output_head, "accuracy"), labels, train) == "b"
    numbers = Contract(output_head="regress")
    values = [ValuedRow(i, "t", float(value)) for i, value in enumerate((0, 1, 8))]
    assert float(constant_answer(questions(values, numbers.output_head, "mae"), numbers, values)) == 1.0
    assert float(constant_answer(questions(values, numbers.output_head, "rmse"), numbers, values)) == 3.0
    says = Contract(output_head="generate")
    spoken = [PromptRow(i, "p", text, (text,)) for i, text in enumerate((" A B", " A B", " C"))]
    assert constant_answer(questions(spoken, says.output_head, "exact_match"), says, spoken) == " A B"
    assert constant_answer(questions(spoken, says.output_head, "phoneme_error_rate"), says, spoken) == "A B"


def test_what_is_held_is_judged_from_its_files(backbone, tmp_path):
    from umbel.adapters.adapter import fresh_adapter
    from umbel.adapters.peft_io import load_adapter
    from umbel.core.contract import Contract
    from umbel.core.errors import NotFound

    adapter = fresh_adapter(
        "lora", {}, Contract(output_head="generate"), backbone.shape, backbone=backbone.fingerprint, seed=1
    )
    with holding() as held:
        digest = held.hold(adapter)
        again = load_adapter(held.fetch(digest), backbone.shape)
        assert all(again.tensors[name].equal(tensor) for name, tensor in adapter.tensors.items())
        assert held.resolve(digest).digest == digest
        with pytest.raises(NotFound):
            held.resolve("sha256:" + "0" * 64)
