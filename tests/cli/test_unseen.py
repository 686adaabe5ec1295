"""`umbel eval` and `umbel compare` tell of rows that a version was trained on, and leave them out when asked."""

import json

import pytest

from umbel.cli.train.finish import _data_flags
from umbel.core.settings import Settings
from umbel.training.data.source import load_splits
from umbel.training.task import Task

ROWS = [
    {"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "positive" if i % 2 else "negative"} for i in range(80)
]
LABELS = ("--labels", "negative,neutral,positive")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def train(run, data):
    def go(*words: str):
        answer = run("train", "--name", "joy", "--data", str(data), "--task", "classify", "--steps", "1", *words)
        assert answer.code == 0, answer.err

    return go


@pytest.fixture
def splits(data):
    return load_splits(Task(name="joy", data=str(data), task="classify"), Settings.load())


def test_an_evaluation_on_the_training_file_says_how_many_rows_were_trained_on(run, train, data, splits):
    train(*LABELS)
    answer = run("eval", "joy", "--data", str(data), "--json")
    told = json.loads(answer.out)
    assert told["trained_on"] == len(splits.train)
    assert 40 < told["trained_on"] < told["rows"] == 80
    assert f"joy:1 was trained on {len(splits.train)} of these 80 rows" in answer.err


def test_a_copy_under_another_path_is_known_by_its_bytes_after_the_first_is_gone(run, train, data, tmp_path, splits):
    train(*LABELS)
    moved = data.rename(tmp_path / "moved.jsonl")
    assert json.loads(run("eval", "joy", "--data", str(moved), "--json").out)["trained_on"] == len(splits.train)


def test_unseen_leaves_exactly_the_held_out_rows_and_no_warning(run, train, data, splits):
    train(*LABELS)
    answer = run("eval", "joy", "--data", str(data), "--unseen", "--json")
    told = json.loads(answer.out)
    assert (told["rows"], told["trained_on"]) == (len(splits.test), 0)
    assert "beware" not in answer.err
    few = json.loads(run("eval", "joy", "--data", str(data), "--unseen", "--limit", "2", "--json").out)
    assert few["rows"] == 2


def test_other_rows_of_another_file_are_none_that_it_was_trained_on(run, train, tmp_path):
    train(*LABELS)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "a new one", "label": "positive"}) + "\n")
    answer = run("eval", "joy", "--data", str(other), "--json")
    assert json.loads(answer.out)["trained_on"] == 0
    assert "beware" not in answer.err


def test_what_a_parent_was_trained_on_counts_for_its_child(run, train, data, tmp_path, splits):
    train(*LABELS)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "text": row["text"] + " indeed"}) + "\n" for row in ROWS))
    words = ("--from", "joy:1", "--name", "joy", "--data", str(other), "--task", "classify", "--steps", "1")
    assert run("train", *words).code == 0
    assert json.loads(run("eval", "joy:2", "--data", str(data), "--json").out)["trained_on"] == len(splits.train)


def test_a_comparison_tells_it_of_each_version_and_null_where_it_is_not_known(run, train, data, splits):
    train(*LABELS)
    answer = run("compare", "joy:1", "mood:1", "--data", str(data), "--json")
    told = json.loads(answer.out)
    assert (told["trained_on_a"], told["trained_on_b"]) == (len(splits.train), None)
    assert "joy:1 was trained on" in answer.err


def test_unseen_is_refused_where_a_training_is_not_known(run, train, data):
    train(*LABELS)
    answer = run("compare", "joy:1", "mood:1", "--data", str(data), "--unseen")
    assert answer.code == 2
    assert "what mood:1 was trained on is not known" in answer.err


def test_data_that_changed_since_are_not_taken_for_what_was_trained_on(run, train, data):
    train(*LABELS)
    data.write_text(data.read_text() + json.dumps({"text": "one more", "label": "positive"}) + "\n")
    assert json.loads(run("eval", "joy", "--data", str(data), "--json").out)["trained_on"] is None


def test_the_command_to_compare_after_a_training_judges_on_rows_kept_from_it(data):
    one = Task(name="joy", data=str(data), task="classify")
    assert _data_flags(one) == f"--data {data} --unseen"
    own = Task(name="joy", data=str(data), task="classify", test="held.jsonl")
    assert _data_flags(own) == "--data held.jsonl"
    assert _data_flags(Task(name="joy", data="tweets-sentiment", task="classify")) == "--data tweets-sentiment"
