"""A spreadsheet is enough: checked, trained on, evaluated, compared and answered, columns under their own names."""

import csv
import json

import pytest

NAMED = ("--text-column", "review", "--label-column", "verdict")


@pytest.fixture
def reviews(tmp_path) -> str:
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "review", "verdict"))
        for i in range(120):
            writer.writerow(
                (i, f'{"good" if i % 2 else "bad"}, "really" thing {i}', "positive" if i % 2 else "negative")
            )
    return str(path)  # fmt: skip


def test_a_csv_is_checked_with_and_without_tokens(run, reviews):
    answer = run("data", "check", reviews, *NAMED)
    assert answer.code == 0, answer.err
    assert "120 rows" in answer.out
    answer = run("data", "check", reviews, "--task", "classify", *NAMED)
    assert answer.code == 0, answer.err
    assert "positive" in answer.out


def test_an_empty_cell_is_told_to_be_filled_or_left_out(run, tmp_path):
    path = tmp_path / "gap.csv"
    path.write_text("review,verdict\nfine,x\n,y\n")
    answer = run("data", "check", str(path), *NAMED)
    assert answer.code == 2
    assert "line 3: column 'review' is empty" in answer.err
    assert "fix: write a text there, or leave the row out" in answer.err


def test_a_csv_is_trained_on_evaluated_and_compared(run, reviews, registry):
    labels = ("--labels", "negative,neutral,positive")
    trained = run(
        "train", "--name", "verdict", "--data", reviews, "--task", "classify", "--steps", "2", *NAMED, *labels
    )
    assert trained.code == 0, trained.err
    assert registry.versions.get("verdict:1").method == "lora"
    found = json.loads(run("eval", "verdict", "--data", reviews, *NAMED, "--json").out)
    assert found["rows"] == 120
    answer = run("compare", "mood:1", "mood:2", "--data", reviews, *NAMED, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["rows"] == 120


@pytest.mark.parametrize(
    ("text", "label", "wrong", "flag"),
    [("body", "verdict", "body", "--text-column"), ("review", "mark", "mark", "--label-column")],
)
def test_an_unknown_column_exits_2_and_names_its_flag_and_the_header(run, reviews, text, label, wrong, flag):
    columns = ("--text-column", text, "--label-column", label)
    answer = run("train", "--name", "v", "--data", reviews, "--task", "classify", *columns)
    assert answer.code == 2
    assert f"reviews.csv has no column '{wrong}', only 'id', 'review', 'verdict'." in answer.err
    assert answer.err.splitlines()[-1].strip() == f"fix: give {flag} one of these names"


def test_a_file_is_answered_into_a_tsv_with_tabs_between_whatever_the_input_is(run, reviews, tmp_path):
    target = tmp_path / "answered.tsv"
    answer = run("run", "mood", "--input", reviews, "--text-column", "review", "--output", str(target))
    assert answer.code == 0, answer.err
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["review"] for row in rows[:2]] == ['bad, "really" thing 0', 'good, "really" thing 1']
    assert {row["label"] for row in rows} <= {"negative", "neutral", "positive"}


def test_a_csv_is_answered_into_a_csv_that_can_be_read_again(run, reviews, tmp_path):
    target = tmp_path / "answered.csv"
    answer = run("run", "mood", "--input", reviews, "--text-column", "review", "--output", str(target))
    assert answer.code == 0, answer.err
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(120))
    assert rows[3]["review"] == 'good, "really" thing 3'
    one = json.loads(run("run", "mood", rows[3]["review"], "--json").out)
    assert rows[3]["label"] == one["label"]
    assert json.loads(rows[3]["probs"]) == pytest.approx(one["probs"], abs=1e-4)
