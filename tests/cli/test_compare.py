"""`umbel eval` and `umbel compare` on a real registry: scores kept, findings paired, wrong pairs refused."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from umbel.adapters.peft_io import export_files

WORDS = ("sun", "rain", "late", "fine", "train", "cake", "queue", "cloud", "tea", "noise")


@pytest.fixture
def data(stocked, tmp_path) -> str:
    rng = random.Random(5)
    labels = ("negative", "neutral", "positive")
    rows = [{"text": " ".join(rng.sample(WORDS, 4)), "label": rng.choice(labels)} for _ in range(40)]
    path: Path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_evaluation_is_printed_and_every_row_is_kept(run, data, registry):
    answer = run("eval", "mood:2", "--data", data, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["version"], told["rows"]) == ("mood:2", 40)
    items = registry.evaluations.items(told["evaluation"], metric="accuracy")
    assert sum(item.score for item in items) / 40 == pytest.approx(told["accuracy"])
    assert {item.output for item in items} <= {"negative", "neutral", "positive"}


def test_two_versions_are_compared_on_the_same_rows(run, data, registry):
    answer = run("compare", "mood:1", "mood:2", "--data", data, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["difference"] == pytest.approx(told["mean_a"] - told["mean_b"])
    kept = [registry.evaluations.items(each, metric="accuracy") for each in told["evaluations"]]
    pairs = list(zip(*kept, strict=True))
    assert all(a.item == b.item for a, b in pairs)
    assert sum(a.score != b.score for a, b in pairs) == told["discordant"]
    assert ("cannot tell" in told["sentence"]) == (told["winner"] is None)


def test_the_sentence_is_what_a_person_reads(run, data):
    told = json.loads(run("compare", "mood", "mood@canary", "--data", data, "--json").out)
    answer = run("compare", "mood", "mood@canary", "--data", data)
    assert (told["a"], told["b"]) == ("mood:1", "mood:3")
    assert told["sentence"] in answer.out.splitlines()


def test_where_less_is_better_it_is_said(run, data):
    words = ("mood", "mood@canary", "--data", data, "--metric", "brier")
    told = json.loads(run("compare", *words, "--json").out)
    assert not told["higher_is_better"]
    assert "less brier " in told["sentence"]
    (judged,) = [line for line in run("compare", *words).out.splitlines() if line.startswith("judged by")]
    assert judged.split(maxsplit=2)[2] == "brier; less is better"
    lines = {line.split()[0]: line for line in run("eval", "mood", "--data", data).out.splitlines()}
    assert lines["brier"].endswith("less is better")
    assert not lines["accuracy"].endswith("less is better")


@pytest.mark.parametrize("right", ["mood:1", "mood:2"])
def test_a_winner_is_told_to_be_promoted_unless_it_is_champion_already(right, run, data, registry, tmp_path):
    kept = json.loads(run("eval", right, "--data", data, "--json").out)["evaluation"]
    answers = [item.output for item in registry.evaluations.items(kept, metric="accuracy")]
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    rows = [{"text": text, "label": label} for text, label in zip(texts, answers, strict=True)]
    path = tmp_path / "its-own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run("compare", "mood:1", "mood:2", "--data", str(path)).out
    assert f"{right} is better by" in out
    assert ("umbel promote mood:2" in out) == (right == "mood:2")
    assert "umbel promote mood:1" not in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("mood:1", "mood"), 2, "both names mean mood:1"),
        (("mood:1", "nobody"), 3, "nobody"),
        (("mood:1", "tiny"), 2, "has no classify head"),
        (("mood:1", "mood:9"), 3, "mood"),
    ],
)
def test_a_wrong_pair_is_refused(words, code, told, run, data):
    answer = run("compare", *words, "--data", data)
    assert answer.code == code, answer.out
    assert told in answer.err


def test_wrong_data_name_the_file_and_the_line(run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "x", "label": "positive"}\n{"txt": 1}\n')
    answer = run("eval", "mood", "--data", str(path))
    assert answer.code == 2
    assert "line 2" in answer.err
    assert run("eval", "mood", "--data", "nowhere").code == 3


def test_a_label_that_the_version_does_not_know_is_told_before_any_row_is_asked(run, tmp_path):
    path = tmp_path / "strange.jsonl"
    path.write_text('{"text": "x", "label": "positive"}\n{"text": "y", "label": "postive"}\n')
    answer = run("eval", "mood", "--data", str(path))
    assert answer.code == 2
    assert "line 2: mood:1 does not know the label 'postive'; its labels are negative, neutral, positive." in answer.err
    assert "Fix: did you mean 'positive'?" in answer.err.replace("fix:", "Fix:")
    assert "rows answered" not in answer.err


def publish(registry, name, adapter):
    return registry.publish(
        export_files(adapter, backbone_name="tiny"),
        name=name,
        method=adapter.method.name,
        config=adapter.config,
        contract=adapter.contract,
        backbone=adapter.backbone,
    )


def test_versions_that_are_asked_differently_are_not_compared(run, data, registry, made):
    own = registry.fetch(registry.resolve("mood:1").digest).manifest.contract
    publish(registry, "shouty", made(9, contract=own.model_copy(update={"template": "HEAR: {text}"})))
    answer = run("compare", "mood:1", "shouty:1", "--data", data)
    assert answer.code == 2
    assert "differ in template: '{text}' and 'HEAR: {text}'." in answer.err
    publish(registry, "fewer", made(9, contract=own.model_copy(update={"labels": ("x", "y")})))
    assert (
        f"differ in labels: {', '.join(own.labels)} and x, y."
        in run("compare", "mood:1", "fewer:1", "--data", data).err
    )


def test_a_version_for_another_backbone_is_never_asked_on_this_one(run, data, registry, made):
    publish(registry, "stranger", replace(made(9), backbone="sha256:" + "1" * 64))
    answer = run("eval", "stranger", "--data", data)
    assert answer.code == 2
    assert "was made for backbone sha256:1111" in answer.err


@pytest.fixture
def other(run, stocked, registry, made, tmp_path):
    """`other`, a root of its own beside `tiny`, of the same shape, and an adapter on it."""
    from umbel.backbone.fingerprint import identity
    from umbel.backbone.tiny import tiny_backbone

    folder = tiny_backbone(tmp_path / "source" / "other", seed=9)
    assert run("pull", "backbone", str(folder), "--name", "other", "--quiet").code == 0
    publish(registry, "stranger", replace(made(9), backbone=identity(folder).fingerprint))
    return "stranger"


def test_versions_on_backbones_of_no_common_root_are_not_compared(run, data, other):
    answer = run("compare", "mood:1", f"{other}:1", "--data", data)
    assert answer.code == 2
    assert "neither was trained from the other's root" in answer.err


def test_training_does_not_go_on_from_a_version_for_another_backbone(run, data, other):
    words = ("--from", f"{other}:1", "--name", "mixed", "--data", data, "--steps", "1", "--backbone", "tiny")
    answer = run("train", *words)
    assert answer.code == 2
    assert "stranger:1 was made for backbone" in answer.err
