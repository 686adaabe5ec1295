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
    assert facts["contradictions"] == "1 training row whose text came before, with another answer"
    assert facts["copies"].startswith("0 training rows")


def test_with_and_without_a_task_copies_contradictions_and_leaks_are_counted_alike(run, tmp_path):
    train = [{"text": f"number {i}", "label": "ab"[i % 2]} for i in range(1500)]
    train += [{"text": f"Number {i}!", "label": "ab"[(i + i // 3) % 2]} for i in range(9)]
    train += [{"text": "number 3", "label": label} for label in "ab"]
    parts = {"train": train, "validation": train[:4], "test": [*train[:7], {"text": "new", "label": "a"}]}
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = json.loads(run("data", "check", str(tmp_path), "--json").out)
    tried = json.loads(run("data", "check", str(tmp_path), "--task", "classify", "--json").out)
    assert plain["copies"] == tried["splits"]["train"]["copies"] > plain["contradictions"] > 0
    assert plain["contradictions"] == tried["contradictions"]
    assert plain["leaks"] == tried["leaks"]["test"] == 7
    told = run("data", "check", str(tmp_path), "--task", "classify").out
    assert f"{plain['contradictions']} training rows are contradictions" in told
    assert "1,511" in told  # rows of a label and of a split are written alike


def test_the_fix_for_few_test_rows_is_one_of_this_command_or_says_whose_it_is(run, rows):
    train = rows(*[{"text": f"number {i}", "label": "ab"[i % 2]} for i in range(300)])
    answer = run("data", "check", train, "--task", "classify")
    assert "--test FILE, or train with --test-fraction 0.3" in answer.out
    more = rows(*[{"text": f"another {i}", "label": "ab"[i % 2]} for i in range(120)], name="more.jsonl")
    assert "only large" not in run("data", "check", train, "--task", "classify", "--test", more).out


def test_json_counts_leaks(run, rows):
    train, test = rows({"text": "a", "label": "x"}), rows({"text": "a", "label": "x"}, name="test.jsonl")
    found = json.loads(run("data", "check", train, "--test", test, "--json").out)
    assert found["leaks"] == 1
    assert found["rows"] == {"train": 1, "test": 1}


def test_without_test_rows_no_number_of_leaks_is_told(run, rows):
    train = rows({"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    (leaks,) = [line for line in run("data", "check", train).out.splitlines() if line.startswith("leaks")]
    assert "there is no test split" in leaks
    assert json.loads(run("data", "check", train, "--json").out)["leaks"] is None
    with_test = run("data", "check", train, "--test", rows({"text": "c", "label": "x"}, name="test.jsonl")).out
    assert "0 test rows whose text is in train" in with_test


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
    assert "leaks" in answer.out
    assert "training rows are cut" in answer.out


@pytest.mark.parametrize("words", [("--max-length", "9"), ("--template", "say {text}"), ("--labels", "a,b")])
def test_what_only_a_task_has_is_refused_without_one(run, rows, words):
    answer = run("data", "check", rows({"text": "a", "label": "x"}), *words)
    assert answer.code == 2
    assert f"{words[0]} says how a task is trained" in answer.err
    assert "add --task" in answer.err


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
    counts = {"median": 32, "p95": 51, "longest": 77, "truncated": 0, "left_out": 0, "copies": 2306}
    split = SplitReport(rows=33_498, tokens=1_047_745, **counts, balance={})
    found = {"name": "x", "digest": "sha256:0", "labels": (), "contradictions": 0, "findings": []}
    data._print(Trial(splits={"validation": split}, leaks={"validation": 0}, **found))
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    header, row = out.split("Splits")[1].splitlines()[1:3]
    assert re.sub(" +", " ", header.strip()) == "split rows tokens p50 p95 max cut left out copies leaks"
    assert re.sub(" +", " ", row.strip()) == "validation 33,498 1,047,745 32 51 77 0 0 2,306 0"


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


def misspelt(rows, at):
    labels = ["negative", "positive"] * 40
    labels[at] = labels[at][:-1]
    return rows(*[{"text": f"number {i}", "label": label} for i, label in enumerate(labels)])


def test_a_misspelt_label_is_told_with_what_was_meant_wherever_its_row_falls(run, rows):
    told = set()
    for at in range(0, 12, 2):
        data = misspelt(rows, at)
        plain, tried = run("data", "check", data), run("data", "check", data, "--task", "classify")
        assert plain.code == 0
        assert "'negativ' has 1 training row. fix: did you mean 'negative'?" in plain.out
        assert "did you mean 'negative'?" in tried.out + tried.err
        if tried.code:
            assert f"{data} line {at + 1}: label 'negativ' is none of negative, positive." in tried.err
        told.add(tried.code)
    assert told == {0, 2}  # in train, and held out


def test_tags_are_counted_by_their_words(run, rows):
    data = rows(*[{"tokens": ["see", "Ann", str(i)], "tags": ["O", "N", "O"]} for i in range(60)])
    answer = run("data", "check", data, "--task", "tag", "--json")
    assert answer.code == 0, answer.err
    train = json.loads(answer.out)["splits"]["train"]
    assert train["balance"] == {"N": train["rows"], "O": 2 * train["rows"]}


def test_only_forms_that_are_like_the_row_are_offered(run, rows):
    told = run("data", "check", rows({"text": "a", "lable": "x"})).err
    assert '"label"' in told
    assert '"messages"' not in told


def test_where_nobody_named_the_task_each_form_is_offered_with_its_task(run, rows, tmp_path):
    told = run("data", "check", rows({"lable": "x"})).err
    assert all(f"    {head}: {{" in told for head in ("classify", "regress", "tag", "embed", "generate"))
    table = tmp_path / "rows.csv"
    table.write_text("lable\nx\n")
    assert "header text,label (classify) or text,value (regress)" in run("data", "check", str(table)).err
    asked = run("data", "check", rows({"lable": "x"}), "--task", "classify").err
    assert asked.count('{"') == 1
    assert "classify:" not in asked
