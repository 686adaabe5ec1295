"""``umbel data check``: what is wrong is told before anybody trains on it."""

import json
import re

import pytest


@pytest.fixture
def rows(tmp_path):
    def write(*rows, name="rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_a_good_file_is_described(run, rows):
    answer = run("data", "check", rows({"text": "a b", "label": "x"}, {"text": "A b!", "label": "y"}))
    assert answer.code == 0
    facts = dict(line.split(maxsplit=1) for line in answer.out.splitlines() if not line.startswith("label"))
    assert facts["form"] == "classify"
    assert facts["contradictions"] == "1"


def test_json_counts_leaks(run, rows):
    train, test = rows({"text": "a", "label": "x"}), rows({"text": "a", "label": "x"}, name="test.jsonl")
    found = json.loads(run("data", "check", train, "--test", test, "--json").out)
    assert found["leaks"] == 1
    assert found["rows"] == {"train": 1, "test": 1}


def test_a_wrong_row_exits_2_with_its_line(run, rows):
    answer = run("data", "check", rows({"text": "a", "label": "x"}, {"text": "b"}))
    assert answer.code == 2
    assert "line 2" in answer.err


def test_a_missing_file_exits_3(run):
    assert run("data", "check", "nothing.jsonl").code == 3


def test_with_a_task_tokens_are_looked_at_too(run, rows):
    many = [{"text": f"{word} number {i}", "label": word} for i in range(20) for word in ("sun", "rain")]
    answer = run("data", "check", rows(*many), "--task", "classify", "--max-length", "10")
    assert answer.code == 0, answer.err
    assert "in train" in answer.out
    assert "training rows are cut" in answer.out


def test_data_that_cannot_train_end_with_2(run, rows):
    same = [{"text": f"number {i}", "label": "only"} for i in range(30)]
    answer = run("data", "check", rows(*same), "--task", "classify", "--labels", "only,other")
    assert answer.code == 2
    assert "no training row has the label 'other'" in answer.err


def test_one_label_is_warned_of_without_a_task_too(run, rows):
    answer = run("data", "check", rows(*[{"text": f"number {i}", "label": "only"} for i in range(30)]))
    assert answer.code == 0
    assert "has the label 'only'" in answer.out
    assert "--label-column" in answer.out
    two = [{"text": f"number {i}", "label": "ab"[i % 2]} for i in range(30)]
    assert "warning" not in run("data", "check", rows(*two)).out


@pytest.mark.parametrize(
    "words",
    [
        ("data", "check"),
        ("train", "--name", "mood", "--task", "classify", "--data"),
        ("eval", "mood:1", "--data"),
    ],
)
def test_a_folder_without_the_split_is_told_with_every_name_that_would_do(run, tmp_path, words):
    (tmp_path / "rows.csv").write_text("text,label\na,x\n")
    answer = run(*words, str(tmp_path))
    split = "test" if "eval" in words else "train"
    assert answer.code == 3
    assert f"has no {split}.jsonl, {split}.csv or {split}.tsv." in answer.err
    assert "fix: name its files so" in answer.err


def test_the_table_of_a_large_dataset_breaks_no_word_at_80_columns(capsys, monkeypatch):
    from umbel.cli import data
    from umbel.training.data.trial import SplitReport, Trial

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    counts = {"median": 32, "p95": 51, "longest": 77, "truncated": 0, "left_out": 0, "duplicates": 2306}
    split = SplitReport(rows=33_498, tokens=1_047_745, **counts, balance={})
    found = {"name": "x", "digest": "sha256:0", "labels": (), "contradictions": 0, "findings": []}
    data._print(Trial(splits={"validation": split}, leaks={"validation": 0}, **found))
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    header, row = out.split("Splits")[1].splitlines()[1:3]
    assert re.sub(" +", " ", header.strip()) == "split rows tokens p50 p95 max cut left out copies in train"
    assert re.sub(" +", " ", row.strip()) == "validation 33,498 1,047,745 32 51 77 0 0 2306 0"


@pytest.mark.parametrize("task", [(), ("--task", "classify")])
def test_a_check_and_a_training_tell_the_same_fix_for_the_same_data(run, rows, task):
    same = rows(*[{"text": f"number {i}", "label": "only"} for i in range(30)])
    checked = run("data", "check", same, *task)
    trained = run("train", "--name", "x", "--task", "classify", "--data", same)
    assert fix_of(trained.err) in checked.out + checked.err
    for nothing in ("nothing.jsonl", "no-such-dataset"):
        checked = run("data", "check", nothing, *task)
        trained = run("train", "--name", "x", "--task", "classify", "--data", nothing)
        assert (checked.code, checked.err) == (trained.code, trained.err)


def test_rows_that_are_all_too_long_have_one_fix_too(run, rows):
    long = rows(*[{"prompt": f"{i} " * 40, "completion": "word " * 60} for i in range(30)])
    words = ("--task", "generate", "--max-length", "8")
    checked, trained = run("data", "check", long, *words), run("train", "--name", "x", "--data", long, *words)
    assert fix_of(checked.err) == fix_of(trained.err)


def fix_of(told):
    return told.split("fix: ")[1].strip()


def test_only_forms_that_are_like_the_row_are_offered(run, rows):
    told = run("data", "check", rows({"text": "a", "lable": "x"})).err
    assert '"label"' in told
    assert '"messages"' not in told
