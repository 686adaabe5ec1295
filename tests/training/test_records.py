"""CSV is read as JSONL is: the same rows, and every wrong one told with file, line and column."""

import json

import pytest

from umbel.core.contract import OutputHead
from umbel.core.errors import DataError
from umbel.training.data.records import Columns, part_of, read_records
from umbel.training.data.rows import read_rows


@pytest.fixture
def csv_file(tmp_path):
    def write(text, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
ALIKE = {
    OutputHead.CLASSIFY: ('text,label\n"a, ""b""\nc",x\nd,7\n', [('a, "b"\nc', "x"), ("d", "7")]),
    OutputHead.REGRESS: ("text,value\na,1\nb,-0.5e1\n", [("a", 1), ("b", -5.0)]),
    OutputHead.TAG: (
        'tokens,tags\nsee Ann,O N\n"[""a b"", ""c""]",O N\n',
        [(["see", "Ann"], ["O", "N"]), (["a b", "c"], ["O", "N"])],
    ),
    OutputHead.EMBED: ("text,positive,negative\na,b,\nc,d,e\n", [("a", "b", None), ("c", "d", "e")]),
    OutputHead.GENERATE: ("prompt,completion\na ->, b\n", [("a ->", " b")]),
}


@pytest.mark.parametrize("head", ALIKE)
def test_csv_gives_the_rows_that_jsonl_gives(csv_file, tmp_path, head):
    text, wanted = ALIKE[head]
    keys = text.splitlines()[0].split(",")
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in wanted))
    found, told = read_rows(csv_file(text), head), read_rows(same, head)
    assert [_content(row) for row in found] == [_content(row) for row in told]


def _content(row):
    return {name: getattr(row, name) for name in row.__slots__ if name != "line"}


def test_conversations_and_lists_of_labels_are_json_in_their_cell(csv_file):
    quoted = json.dumps(CHAT).replace('"', '""')
    (row,) = read_rows(csv_file(f'messages\n"{quoted}"\n'), OutputHead.GENERATE)
    assert list(row.messages) == CHAT
    several = read_rows(csv_file('text,label\na,"[""x"", ""y""]"\nb,[]\n'), OutputHead.CLASSIFY)
    assert [row.labels for row in several] == [("x", "y"), ()]
    (one,) = read_rows(csv_file("text,label\na,[other]\n"), OutputHead.CLASSIFY)
    assert (one.labels, one.multi) == (("[other]",), False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("text;label\na, b;x\n", "rows.csv"),
        ("text\tlabel\na, b\tx\n", "rows.tsv"),
        (b'\xef\xbb\xbftext,label\r\n"a, b",x\r\n\r\n', "ROWS.CSV"),
    ],
)
def test_semicolons_tabs_marks_and_windows_line_ends_are_no_trouble(csv_file, text, name):
    (row,) = read_rows(csv_file(text, name), OutputHead.CLASSIFY)
    assert (row.text, row.labels) == ("a, b", ("x",))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_columns_of_any_name_are_mapped_even_where_another_has_the_key(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    row = {"text": "not this", "review": "this", "stars": 4}
    path.write_text("text,review,stars\nnot this,this,4\n" if suffix == "csv" else json.dumps(row))
    (found,) = read_rows(path, OutputHead.CLASSIFY, columns=Columns("review", "stars"))
    assert (found.text, found.labels) == ("this", ("4",))
    (valued,) = read_rows(path, OutputHead.REGRESS, columns=Columns("review", "stars"))
    assert valued.value == 4.0
    (spoken,) = read_rows(path, OutputHead.GENERATE, columns=Columns("review", "text"))
    assert (spoken.prompt, spoken.completion) == ("this", "not this")


BAD = [
    ("text,label\na,x\nb\n", "invalid_csv", "line 3", "1 cells under the header's 2 columns"),
    ("text,label\na,x\nb,y,z\n", "invalid_csv", "line 3", "3 cells"),
    ('text,label\n"a,x\n', "invalid_csv", "line 2", "not CSV"),
    ('text,label\na,x\n"b"c,y\n', "invalid_csv", "line 3", "not CSV"),
    ("text,text\na,x\n", "invalid_csv", "line 1", "'text'"),
    ('text,label\n"a\nb",x\n ,y\n', "empty_text", "line 4", "column 'text'"),
    ("text,label\na,x\nb,\n", "wrong_form", "line 3", "column 'label'"),
    ("review,label\na,x\n", "wrong_form", "line 2", "review"),
    (b"text,label\na,\xff\n", "invalid_utf8", "line 2", "byte"),
    ("text,label\n", "empty_file", "rows.csv", "no rows"),
    ("", "empty_file", "rows.csv", "no rows"),
]


@pytest.mark.parametrize(("text", "code", "line", "told"), BAD)
def test_a_wrong_csv_is_told_with_line_column_and_fix(csv_file, text, code, line, told):
    with pytest.raises(DataError) as caught:
        read_rows(csv_file(text), OutputHead.CLASSIFY)
    assert caught.value.code == code
    assert line in caught.value.message
    assert told in caught.value.message
    assert "rows.csv" in caught.value.message
    assert caught.value.hint


def test_the_column_that_is_told_is_the_files_own(csv_file):
    with pytest.raises(DataError, match="line 3: column 'stars' is 'many'"):
        read_rows(csv_file("review,stars\na,1\nb,many\n"), OutputHead.REGRESS, columns=Columns("review", "stars"))
    with pytest.raises(DataError, match="no column 'rating'") as caught:
        read_rows(csv_file("review,stars\na,1\n"), OutputHead.CLASSIFY, columns=Columns("review", "rating"))
    assert caught.value.code == "unknown_column"


def test_a_column_that_nobody_needs_may_hold_anything(csv_file):
    (row,) = read_rows(csv_file("text,label,value,messages\na,x,high,none\n"), OutputHead.CLASSIFY)
    assert row.text == "a"


def test_a_folder_may_hold_csv_and_jsonl_comes_first(csv_file, tmp_path):
    path = csv_file("text,label\na,x\n", "train.csv")
    assert part_of(tmp_path, "train") == path
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert part_of(tmp_path, "train").suffix == ".jsonl"
    assert part_of(tmp_path, "test").name == "test.jsonl"


def test_records_know_the_line_they_start_on(csv_file):
    found = list(read_records(csv_file('text,label\n"a\n\nb",x\n\nc,y\n')))
    assert [line for line, _ in found] == [2, 6]
