"""``umbel train --train ...``: a backbone of one's own, from the command line to an answer."""

import json

import pytest

from umbel.backbone.fingerprint import fingerprint
from umbel.core.settings import Settings

MOODS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "glad" if i % 2 else "sad"} for i in range(120)]
WORDS = [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}"} for a in "abcdefgh" for b in "stuvwxyz"]


@pytest.fixture
def data(tmp_path):
    """data(rows): a JSONL file."""

    def write(rows) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def train(run, data):
    """train(rows, head, *flags): joy, trained quietly; its outcome as JSON."""

    def call(rows, head, *flags: str):
        base = ("train", "--name", "joy", "--data", data(rows), "--task", head, "--lr", "0.003", "--json", "--quiet")
        answer = run(*base, *flags)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)[0]

    return call


@pytest.mark.parametrize(("what", "partial"), [("layers=last:1", True), ("all", False)])
def test_a_trained_backbone_is_kept_published_and_answers(run, train, registry, what, partial):
    told = train(MOODS, "classify", "--train", what, "--steps", "30")
    version = registry.versions.get("joy:1")
    row = registry.backbones.get(version.backbone)
    (folder,) = [path for path in (Settings.load().backbones).iterdir() if path.name == told["backbone"]]
    assert version.method == "none"
    assert version.metrics["accuracy"] > 0.9
    assert (row.name, row.parent) == (told["backbone"], registry.backbones.get("tiny").fingerprint)
    assert (folder / "umbel_changed.safetensors").exists() == partial
    assert fingerprint(folder) == version.backbone
    assert "trained from `tiny`" in (folder / "README.md").read_text()
    assert run("run", "joy", "good thing 5").out.splitlines()[0] == "glad"
    assert run("run", "joy", "bad thing 6").out.splitlines()[0] == "sad"
    assert run("backbones", "show", "joy:1", "--json").out == run("backbones", "show", told["backbone"], "--json").out


def test_the_same_training_under_another_name_shares_the_backbone_that_is_there(run, train, registry):
    first = train(MOODS, "classify", "--train", "layers=last:1", "--steps", "30")
    again = train(MOODS, "classify", "--train", "layers=last:1", "--steps", "30", "--name", "glee")
    assert again["backbone"] == first["backbone"]
    assert registry.versions.get("glee:1").backbone == registry.versions.get("joy:1").backbone
    assert [path.name for path in Settings.load().backbones.iterdir() if path.name.startswith("joy.")] == [
        first["backbone"]
    ]
    assert "joy" in (Settings.load().backbones / first["backbone"] / "README.md").read_text()
    assert run("run", "glee", "good thing 5").out.splitlines()[0] == "glad"


def test_the_plan_says_what_is_trained_and_what_freezing_saves(run, data):
    words = ("--train", "layers=last:1", "--steps", "2", "--precision", "bf16-mixed", "--checkpointing", "selective")
    answer = run("train", "--name", "joy", "--data", data(MOODS), "--task", "classify", *words)
    assert answer.code == 0, answer.err
    for part in ("joy: layers=last:1, 9,280 of the backbone's", "bf16-mixed", "freezing saves", "optimizer"):
        assert part in answer.err
    assert "changes to tiny" in answer.out
    assert "umbel serve --backbone joy" in answer.out
    assert "beside the backbone that it was trained from" in answer.out


def test_a_generator_of_its_own_answers_better_than_its_root_on_the_same_rows(run, train, data):
    train(WORDS, "generate", "--train", "all", "--steps", "60")
    answer = run("compare", "joy:1", "tiny", "--data", data(WORDS), "--json", "--quiet")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["winner"] == "joy:1"
    assert told["backbones"][1] == "tiny"
    assert told["backbones"][0].startswith("joy.")


def test_versions_on_backbones_of_one_root_share_a_name_and_are_compared_one_after_the_other(
    run, train, data, registry
):
    train(MOODS, "classify", "--train", "all", "--steps", "20")
    train(MOODS, "classify", "--steps", "20")
    backbones = {registry.versions.get(f"joy:{n}").backbone for n in (1, 2)}
    assert len(backbones) == 2
    answer = run("compare", "joy:1", "joy:2", "--data", data(MOODS))
    assert answer.code == 0, answer.err
    assert "one after the other, both descend from tiny" in answer.out


def test_a_backbone_that_is_needed_stays_and_an_exported_one_is_whole(run, train, tmp_path):
    told = train(MOODS, "classify", "--train", "layers=last:1", "--steps", "2")
    refused = run("backbones", "rm", "tiny")
    assert (refused.code, told["backbone"] in refused.err) == (4, True)
    answer = run("backbones", "export", "joy:1", str(tmp_path / "out"))
    assert answer.code == 0, answer.err
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert run("backbones", "export", "joy:1", str(tmp_path / "out")).code == 4
    assert [row[4] for row in run("backbones", "list").rows] == ["changes to tiny", "root"]


def test_training_goes_on_from_a_version_with_a_backbone_of_its_own(train, registry):
    first = train(MOODS, "classify", "--train", "layers=last:1", "--steps", "5")
    second = train(MOODS, "classify", "--from", "joy:1", "--train", "layers=last:1", "--steps", "5")
    row = registry.backbones.get(registry.versions.get("joy:2").backbone)
    assert row.parent == registry.backbones.get(first["backbone"]).fingerprint
    assert second["backbone"] != first["backbone"]


def test_without_publishing_nothing_is_kept(run, train):
    before = run("backbones", "list").out
    assert train(MOODS, "classify", "--train", "all", "--steps", "2", "--no-publish")["backbone"] is None
    assert run("backbones", "list").out == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--train", "most"), "layers=last:N"),
        (("--train", "all", "--method", "lora"), "leave out --method"),
        (("--train", "all", "--precision", "fp16-mixed"), "bf16-mixed"),
        (("--train", "layers=last:3"), "2 layers"),
        (("--train", "all", "--checkpointing", "some"), "selective"),
        (("--train", "all", "--sweep", "lr=0.001,0.01"), "one setting after the other"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_way_that_can(run, data, registry, flags, said):
    answer = run("train", "--name", "joy", "--data", data(MOODS), "--task", "classify", *flags)
    assert answer.code == 2
    assert said in answer.err
    assert not [each for each in registry.runs.list().items if each.status == "running"]
