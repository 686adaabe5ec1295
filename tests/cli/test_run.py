import io
import json

import pytest


def test_a_text_is_labelled_by_the_champion(run):
    answer = run("run", "mood", "hello")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] in ("negative", "neutral", "positive")
    assert len(lines) == 4
    assert lines[1].split()[1] == lines[0]  # the likeliest first


def test_json_names_the_version_that_answered(run):
    found = json.loads(run("run", "mood@canary", "hello", "--json").out)
    assert found["model"] == "mood:3"
    assert sum(found["probs"]) == pytest.approx(1.0)


def test_a_label_that_is_not_likely_enough_is_kept_back(run):
    lines = run("run", "mood", "hello", "--abstain-below", "1").out.splitlines()
    assert "abstains" in lines[0]
    assert len(lines) == 4
    found = json.loads(run("run", "mood", "hello", "--abstain-below", "1", "--json").out)
    assert (found["label"], found["abstained"]) == (None, True)


def test_the_bare_backbone_generates(run):
    found = json.loads(run("run", "tiny", "hello", "--max-tokens", "3", "--json").out)
    assert found["model"] == "tiny"
    assert found["finish_reason"] in ("stop", "length")


def test_a_dash_reads_the_text_from_stdin(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    assert run("run", "mood", "-").out == run("run", "mood", "hello").out


def test_a_dash_for_the_file_reads_its_rows_from_stdin(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "hello"}\n{"text": "there"}\n')))
    answer = run("run", "mood", "--input", "-")
    assert answer.code == 0, answer.err
    assert [json.loads(line)["text"] for line in answer.out.splitlines()] == ["hello", "there"]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_is_told_as_data_check_tells_it(run, tmp_path, text):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(text)
    answer, checked = (
        run("run", "mood", "--input", str(source), "--output", str(target)),
        run("data", "check", str(source)),
    )
    assert (answer.code, answer.err) == (checked.code, checked.err)
    assert "holds no rows" in answer.err
    assert not target.exists()


def test_a_file_is_answered_row_by_row_in_order(run, tmp_path):
    texts = [f"text {number}" for number in range(20)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)) + "\n")
    answer = run("run", "mood", "--input", str(source), "--output", str(target))
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert answer.code == 0
    assert [(row["id"], row["text"]) for row in rows] == list(enumerate(texts))
    assert {row["model"] for row in rows} == {"mood:1"}
    one = json.loads(run("run", "mood", texts[7], "--json").out)
    assert rows[7]["probs"] == pytest.approx(one["probs"], abs=1e-4)


def test_what_a_row_has_under_a_name_of_the_answers_is_kept_as_given(run, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "hello", "label": "truth"}\n')
    for _ in range(2):  # answered again, the first label is still there
        assert run("run", "mood", "--input", str(source), "--output", str(target)).code == 0
        row = json.loads(target.read_text())
        assert row["given_label"] == "truth"
        assert row["label"] in row["labels"]
        source = target


def test_a_named_column_comes_back_once_and_takes_no_others_place(run, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,tweet\nmine,hello\n")
    row = json.loads(run("run", "mood", "--input", str(source), "--text-column", "tweet").out)
    assert (row["text"], row["tweet"]) == ("mine", "hello")
    source.write_text("id,tweet\n1,hello\n")
    assert "text" not in json.loads(run("run", "mood", "--input", str(source), "--text-column", "tweet").out)


def test_rows_that_fail_stay_in_the_output_with_their_reason_and_the_rest_is_answered(run, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "fine"}\n{"text": ""}\n{"words": 1}\n')
    answer = run("run", "mood", "--input", str(source), "--output", str(target))
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert answer.code == 1
    assert "label" in rows[0]
    assert [row["error"]["code"] for row in rows[1:]] == ["empty_input", "invalid_row"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nope", "x"), 3, "nope"),
        (("mood:99", "x"), 3, "mood:99"),
        (("mood",), 2, "--input"),
        (("tiny", "x", "--abstain-below", "0.5"), 2, "--abstain-below"),
        (("mood", "x", "--max-tokens", "5"), 2, "--max-tokens would change nothing"),
        (("mood", "x", "--seed", "5"), 2, "--seed would change nothing"),
        (("mood", "x", "--url", "http://127.0.0.1:9", "--backbone", "tiny"), 2, "--backbone says what is loaded here"),
        (("mood", "x", "--url", "http://127.0.0.1:9", "--dtype", "fp32"), 2, "--dtype says what is loaded here"),
        (("mood", "x", "--url", "127.0.0.1:9"), 2, "write http://127.0.0.1:9"),
        (("mood", "x", "--input", "y"), 2, "--input"),
        (("mood", "--input", "absent.jsonl"), 3, "absent.jsonl"),
        (("mood", "x", "--url", "http://127.0.0.1:9"), 1, "umbel serve"),
    ],
)
def test_what_cannot_be_asked_is_told_with_its_exit_code(run, words, code, told):
    answer = run("run", *words)
    assert answer.code == code
    assert told in answer.err


def test_the_command_line_tells_the_fix_as_a_command_alone(run, registry):
    registry.versions.yank("mood:2", reason="it shouts")
    answer = run("run", "mood:2", "x")
    assert "fix: umbel adapters unyank mood:2; " in answer.err
    assert "client." not in answer.err


def test_a_deprecated_version_answers_with_a_warning(run, registry):
    registry.versions.deprecate("mood:1", reason="mood:2 is better at irony")
    answer = run("run", "mood:1", "hello")
    assert answer.code == 0
    assert "beware: mood:1 is deprecated: mood:2 is better at irony" in answer.err
    assert "deprecated" not in run("run", "mood:2", "hello").err


def test_a_table_without_a_text_column_is_one_error_that_names_its_header(run, tmp_path):
    (tmp_path / "tickets.csv").write_text("body,verdict\na,x\nb,y\n")
    answer = run("run", "mood", "--input", str(tmp_path / "tickets.csv"), "--output", str(tmp_path / "out.csv"))
    assert answer.code == 2
    assert "its header is body, verdict" in answer.err
    assert "--text-column" in answer.err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "words", [("run", "moood", "x"), ("eval", "moood", "--data", "x.jsonl"), ("bench", "mood", "moood")]
)
def test_a_name_that_is_nothing_here_is_told_before_a_backbone_is_loaded(run, monkeypatch, words):
    from umbel.backbone import loading

    monkeypatch.setattr(loading, "load_backbone", lambda *_, **__: pytest.fail("loaded"))
    answer = run(*words)
    assert answer.code == 3
    assert "did you mean mood?" in answer.err


def test_a_backbone_that_is_nearly_named_is_told_as_one(run):
    assert "did you mean the backbone tiny?" in run("run", "tinny", "x").err


def test_a_line_that_is_no_json_is_named(run, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "fine"}\n{"text": \n')
    answer = run("run", "mood", "--input", str(source))
    assert answer.code == 2
    assert "line 2" in answer.err
