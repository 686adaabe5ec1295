"""Every form is read, and every wrong row is told with its line, its code and the right form."""

import json

import pytest

from umbel.core.contract import OutputHead
from umbel.core.errors import DataError, NotFound
from umbel.training.data.rows import read_rows, text_of

GOOD = {
    OutputHead.CLASSIFY: [{"text": "hi", "label": "a"}, {"text": "ho", "label": "b", "id": 7}],
    OutputHead.REGRESS: [{"text": "hi", "value": 1}, {"text": "ho", "value": 0.5}],
    OutputHead.TAG: [{"tokens": ["a", "b"], "tags": ["X", "O"]}],
    OutputHead.EMBED: [{"text": "hi", "positive": "hello"}, {"text": "a", "positive": "b", "negative": "c"}],
    OutputHead.GENERATE: [{"prompt": "a", "completion": "b"}],
}
CHAT = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]


@pytest.mark.parametrize("head", GOOD)
def test_every_form_is_read(write, head):
    from pathlib import Path

    rows = read_rows(Path(write("rows", GOOD[head])), head)
    assert [row.line for row in rows] == list(range(1, len(GOOD[head]) + 1))
    assert all(text_of(row) for row in rows)


def test_a_file_tells_its_own_form(write):
    from pathlib import Path

    for rows in [*GOOD.values(), CHAT]:
        found = read_rows(Path(write("rows", rows)))
        assert type(found[0]) is type(read_rows(Path(write("rows", rows)))[0])


def test_labels_may_be_numbers_and_lists(write):
    from pathlib import Path

    assert read_rows(Path(write("one", [{"text": "x", "label": 3}])))[0].labels == ("3",)
    several = read_rows(Path(write("many", [{"text": "x", "label": ["a", "b"]}, {"text": "y", "label": []}])))
    assert [row.labels for row in several] == [("a", "b"), ()]
    assert several[0].multi


def test_all_right_answers_are_kept(write):
    from pathlib import Path

    row = {"prompt": "p", "completion": "a", "completions": ["a", "b"]}
    assert read_rows(Path(write("rows", [row])))[0].accepted == ("a", "b")


BAD = [
    (OutputHead.CLASSIFY, '{"text": "a", "label": "x"}\n{"text": "b"', 2, "invalid_json"),
    (OutputHead.CLASSIFY, '{"text": "a", "label": "x"}\n[1, 2]', 2, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": "a", "label": "x"}\n\n{"text": "b"}', 3, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": "a", "value": 3}', 1, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": " ", "label": "x"}', 1, "empty_text"),
    (OutputHead.CLASSIFY, '{"text": 5, "label": "x"}', 1, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": "a", "label": null}', 1, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": "a", "label": true}', 1, "wrong_form"),
    (OutputHead.CLASSIFY, '{"text": "a", "label": "x"}\n{"text": "b", "label": ["x"]}', 2, "mixed_forms"),
    (OutputHead.REGRESS, '{"text": "a", "value": "high"}', 1, "wrong_form"),
    (OutputHead.REGRESS, '{"text": "a", "value": NaN}', 1, "wrong_form"),
    (OutputHead.TAG, '{"tokens": ["a"], "tags": ["X", "Y"]}', 1, "wrong_form"),
    (OutputHead.TAG, '{"tokens": [], "tags": []}', 1, "wrong_form"),
    (OutputHead.EMBED, '{"text": "a", "positive": ""}', 1, "empty_text"),
    (OutputHead.GENERATE, '{"text": "a", "label": "x"}', 1, "wrong_form"),
    (OutputHead.GENERATE, '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', 2, "wrong_form"),
    (OutputHead.GENERATE, '{"messages": []}', 1, "wrong_form"),
    (OutputHead.GENERATE, '{"messages": [{"role": "user", "content": "x"}]}', 1, "wrong_form"),
    (OutputHead.GENERATE, '{"messages": [{"role": "robot", "content": "x"}]}', 1, "wrong_form"),
    (
        OutputHead.GENERATE,
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}',
        1,
        "empty_text",
    ),
]


@pytest.mark.parametrize(("head", "text", "line", "code"), BAD)
def test_a_wrong_row_is_told_with_its_line_and_the_form_expected(tmp_path, head, text, line, code):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(path, head)
    assert caught.value.code == code
    assert f"line {line}" in caught.value.message
    assert "bad.jsonl" in caught.value.message
    assert caught.value.hint


def test_no_rows_no_file_and_no_utf8_are_each_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    for content, code in ((b"", "empty_file"), (b"\n\n", "empty_file"), (b'{"text": "\xff"}', "invalid_utf8")):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_rows(path, OutputHead.CLASSIFY)
        assert caught.value.code == code
    with pytest.raises(NotFound) as missing:
        read_rows(tmp_path / "none.jsonl")
    assert missing.value.code == "data_not_found"


def test_a_limit_reads_no_further(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "label": "x"}) + "\nno json\n")
    assert len(read_rows(path, OutputHead.CLASSIFY, limit=1)) == 1


def test_a_byte_order_mark_and_line_separators_in_texts_are_no_trouble(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"text": "a\u2028b", "label": "x"}
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n" + json.dumps(row).encode()
    )
    assert [found.text for found in read_rows(path, OutputHead.CLASSIFY)] == ["a\u2028b"] * 2
