"""``--gate`` decides on promotion; a version is judged beside its parent and the champion."""

import json

import pytest

ROWS = [
    {"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "positive" if i % 2 else "negative"}
    for i in range(120)
]
LABELS = ("--labels", "negative,neutral,positive")


@pytest.fixture
def data(tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def train(run, data):
    def go(*words: str, name: str = "joy"):
        return run("train", "--name", name, "--data", data, "--task", "classify", "--steps", "2", *LABELS, *words)

    return go


def champion(registry, name):
    return registry.aliases.get(name).get("champion")


def test_a_version_that_fails_is_published_not_promoted_and_exits_5_with_the_figure(train, registry):
    answer = train("--gate", "accuracy>=0.0, accuracy>1")
    assert answer.code == 5
    assert "joy:1 did not pass its gate: accuracy is " in answer.err
    assert "wanted > 1" in answer.err
    assert "wanted >= 0" not in answer.err
    assert "umbel promote joy:1" in answer.err
    assert "compare" not in answer.out  # there is no champion to compare with
    assert registry.versions.get("joy:1").state == "ready"
    assert champion(registry, "joy") is None
    assert "Gate `accuracy>=0, accuracy>1`: accuracy is" in registry.versions.get("joy:1").card


def test_a_version_that_passes_is_promoted_with_the_gate_as_reason_and_the_evaluation_as_evidence(train, registry):
    assert train().code == 0
    answer = train("--gate", "accuracy>=0, forgetting<=1000, brier<=2", "--seed", "1")
    assert answer.code == 0, answer.err
    assert champion(registry, "joy") == 2
    event = registry.aliases.history("joy")[-1]
    assert event.reason == "passed its gate: accuracy>=0, forgetting<=1000, brier<=2"
    (kept,) = registry.evaluations.list(name="joy", number=2)
    assert event.evidence == kept.id
    assert "brier" in kept.summary
    assert "gate accuracy>=0, forgetting<=1000, brier<=2: passed" in answer.out
    assert "joy now answers with joy:2 (was joy:1; undo: umbel rollback joy)" in answer.out


def test_a_gate_that_puts_a_version_in_the_place_of_one_it_does_not_beat_says_so(train, registry):
    assert train().code == 0
    answer = train("--gate", "accuracy>=0", "--lr", "1e-9", "--seed", "1")
    assert answer.code == 0
    assert champion(registry, "joy") == 2
    told = "beware: its gate holds, but it is not shown to be better than joy:1, whose place it took"
    assert told in answer.err


def test_the_same_training_again_is_no_new_version_and_is_not_held_against_itself(train, registry):
    assert train().code == 0
    again = train()
    assert again.code == 0
    assert "joy:1, published before: training gave the same bytes, there is no new version" in again.out
    assert "not compared with joy:1 (champion): it has the same bytes" in again.out
    assert "cannot tell joy from joy:1" not in again.out
    assert len(registry.versions.list("joy").items) == 1
    assert "published before" not in train("--seed", "1").out


def test_a_run_tells_the_version_that_it_became_how_good_that_is_and_what_its_gate_said(run, train):
    train("--gate", "accuracy>=0, accuracy>1")
    shown = facts(run("runs", "show", "joy").out)
    assert shown["version"] == "joy:1"
    assert shown["judged"].startswith("accuracy ")
    assert shown["judged"].endswith(" held-out rows")
    assert shown["gate"].startswith("accuracy>=0, accuracy>1: not passed: accuracy is ")
    told = json.loads(run("runs", "show", "joy", "--json").out)["became"]
    assert (told["version"], told["metric"], told["gate_passed"]) == ("joy:1", "accuracy", False)
    assert told["metrics"]["accuracy"] == pytest.approx(float(shown["judged"].split()[1]), abs=1e-3)
    assert told["rows"] == int(shown["judged"].split()[3])
    train("--gate", "accuracy>=0")  # the same bytes: another run's version
    shown = facts(run("runs", "show", "joy").out)
    assert (shown["version"], shown["gate"]) == ("joy:1", "accuracy>=0: passed")
    train("--no-publish")
    shown = facts(run("runs", "show", "joy").out)
    assert shown["version"] == "none: it was not to be published"
    assert shown["judged"].startswith("accuracy ")
    assert "gate" not in shown


def facts(out: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())


def test_a_diff_of_two_trainings_tells_the_learning_rate_also_of_one_that_was_not_given_any(run, train, registry):
    assert train().code == 0
    assert train("--lr", "0.02").code == 0
    rows = [line.split("\t") for line in run("adapters", "diff", "joy", "1", "2").out.splitlines()]
    (told,) = [row for row in rows if row[0] == "training"]
    assert told[1] == "lr"
    used = registry.runs.points(registry.versions.get("joy:1").run, key="lr")
    assert float(told[2]) == max(point.value for point in used)
    assert told[3] == "0.02"


def test_a_first_version_that_passes_is_champion_by_its_gate(train, registry):
    assert train("--gate", "accuracy>=0").code == 0
    (event,) = registry.aliases.history("joy")
    assert (event.target, event.reason) == (1, "passed its gate: accuracy>=0")
    assert event.evidence == registry.evaluations.list(name="joy", number=1)[0].id


def test_a_first_version_that_beats_no_constant_answer_is_champion_with_a_warning(train, registry):
    answer = train("--lr", "1e-9")
    assert answer.code == 0
    assert champion(registry, "joy") == 1
    assert 'beware: joy answers with it, but it is not shown to be better than always "' in answer.err
    assert "umbel alias rm joy champion" in answer.err
    later = train("--lr", "1e-9", "--seed", "1")
    assert "beware" not in later.err  # it takes no traffic


def test_a_first_version_that_beats_the_constant_answer_is_not_warned_of(run, data):
    words = ("--data", data, "--task", "classify", "--epochs", "12", "--lr", "0.02", "--test-fraction", "0.4")
    answer = run("train", "--name", "joy", *words)
    assert answer.code == 0
    assert "joy is better by" in answer.out
    assert "beware" not in answer.err


def test_without_a_gate_a_later_version_takes_no_traffic(train, registry):
    train()
    train("--seed", "1")
    assert champion(registry, "joy") == 1


def test_a_gate_in_a_task_file_counts_too(run, data, tmp_path):
    file = tmp_path / "joy.toml"
    file.write_text(
        f'name = "joy"\ndata = "{data}"\ntask = "classify"\nsteps = 2\ngate = "accuracy>=0, forgetting<=-100"\n'
    )
    answer = run("train", str(file), "--json", "--quiet")
    assert answer.code == 5
    (found,) = json.loads(answer.out)
    assert not found["gate"]["passed"]
    assert found["gate"]["failures"][0].startswith("forgetting is ")


@pytest.mark.parametrize(
    ("gate", "told"),
    [("wit>=0.5", "accuracy, macro_f1"), ("rmse<=1", "forgetting"), ("accuracy>=80%", "no number")],
)
def test_a_gate_that_cannot_be_measured_or_read_is_refused_before_training(train, registry, gate, told):
    answer = train("--gate", gate)
    assert answer.code == 2
    assert told in answer.err
    assert not registry.runs.list(name="joy").items


def test_eval_holds_a_version_to_a_gate_and_moves_nothing(run, data, registry):
    before = registry.aliases.get("mood")
    assert run("eval", "mood:2", "--data", data, "--gate", "accuracy>=0, log_loss<50").code == 0
    answer = run("eval", "mood:2", "--data", data, "--gate", "accuracy>1, forgetting<=1e9", "--json")
    assert answer.code == 5
    assert "mood:2 did not pass the gate: accuracy is" in answer.err
    assert "forgetting" in json.loads(answer.out)
    assert registry.aliases.get("mood") == before
    assert run("eval", "mood:2", "--data", data, "--gate", "wit>1").code == 2


def test_parent_and_champion_are_judged_on_the_same_rows(run, data, registry):
    answer = run("train", "--from", "mood:3", "--data", data, "--steps", "2", "--lr", "1e-2", "--json", "--quiet")
    assert answer.code == 0, answer.err
    (found,) = json.loads(answer.out)
    result = found["result"]
    names = [each["name"] for each in result["against"]]
    assert names[1:] == ["mood:3 (parent)", "mood:1 (champion)"]
    for each in result["against"]:
        assert each["value"] == pytest.approx(result["value"] - each["difference"])
        assert result["baselines"][each["name"]] == pytest.approx(each["value"])
    held_out = result["rows"]
    alone = json.loads(run("compare", "mood:4", "mood:3", "--data", _test_rows(data, held_out), "--json").out)
    assert alone["difference"] == pytest.approx(result["against"][1]["difference"])
    assert alone["p_value"] == pytest.approx(result["against"][1]["p_value"])
    card = registry.versions.get("mood:4").card
    assert "| mood:3 (parent) |" in card
    assert "against mood:1 (champion): " in card


def _test_rows(data: str, count: int) -> str:
    """The rows that training held out, by the same hash of the text."""
    from pathlib import Path

    from umbel.training.data.rows import LabelledRow
    from umbel.training.data.source import held_place

    rows = [row for row in ROWS if 0.1 <= held_place(LabelledRow(1, row["text"], (row["label"],), False)) < 0.2]
    assert len(rows) == count
    path = Path(data).with_name("held.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_champion_with_other_labels_is_named_and_not_compared(run, data, registry):
    answer = run("train", "--name", "mood", "--data", data, "--task", "classify", "--steps", "2")
    assert answer.code == 0, answer.err
    assert "not compared with mood:1 (champion): its labels are negative, neutral, positive" in answer.out


def test_calibration_and_what_it_costs_are_in_the_card_the_terminal_and_json(train, registry):
    answer = train()
    assert "forgetting" in answer.out
    assert "none with it off" in answer.out
    assert "serving" in answer.out
    version = registry.versions.get("joy:1")
    for part in ("## Calibration", "calibration error", "Brier score", "## Beside its task", "sha256"):
        assert part in version.card
    assert {"forgetting", "probe_accuracy", "brier", "calibration_error"} <= version.metrics.keys()
    (found,) = json.loads(train("--json", "--quiet", "--seed", "5").out)
    assert sum(rows for _, _, rows, _, _ in found["result"]["calibration"]) == found["result"]["rows"]
    assert found["effects"]["backbone_sha256"]
    assert found["serving"]["bytes"] > 0
