import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pytest

from umbel.cli import console


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Thing:
    where: Path
    colours: tuple[Colour, ...]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (272_585_334, "272.6 MB"),
    ],
)
def test_bytes_are_read_as_disks_are_sold(count, text):
    assert console.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7_800, "2 h 10 min"),
    ],
)
def test_seconds_have_no_more_digits_than_they_are_worth(seconds, text):
    assert console.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s ago"),
        (12, "12 s ago"),
        (300, "5 min ago"),
        (7_200, "2 h ago"),
        (86_400, "1 day ago"),
        (172_800, "2 days ago"),
    ],
)
def test_an_age_is_told_in_its_largest_unit(seconds, text):
    assert console.human_age(10**12, 10**12 + seconds * 1000) == text


def test_a_time_says_that_it_is_utc():
    at = datetime(2026, 1, 31, 9, 5, tzinfo=UTC)
    assert console.human_time(int(at.timestamp() * 1000)) == "2026-01-31 09:05 UTC"


def test_a_table_in_a_pipe_is_tab_separated_and_never_cut(capsys):
    console.print_table(("NAME", "N"), [("x" * 300, 1), (None, "[red]")], empty="none")
    assert capsys.readouterr().out == f"NAME\tN\n{'x' * 300}\t1\n\t[red]\n"


def test_a_table_in_a_terminal_takes_brackets_as_text_and_loses_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    console.print_table(("NAME", "DIGEST"), [("a[b]", "0123456789" * 6)], empty="none")
    out = capsys.readouterr().out
    assert "a[b]" in out
    assert "…" not in out
    assert "0123456789" * 6 in "".join(out.split())


def test_an_empty_table_says_so_beside_the_results(capsys):
    console.print_table(("NAME",), [], empty="make one")
    assert capsys.readouterr() == ("", "make one\n")


def test_facts_line_up_and_what_is_unknown_is_left_out(capsys):
    console.print_facts((("name", "x"), ("licence", None), ("notes", ["one", "two"])))
    assert capsys.readouterr().out == "name     x\nnotes    one\n         two\n"


def test_json_knows_our_types(capsys):
    console.print_json({"thing": Thing(Path("/x"), (Colour.RED,)), "set": {2, 1}, "word": "grün"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"thing": {"where": "/x", "colours": ["red"]}, "set": [1, 2], "word": "grün"}
    assert "grün" in out


def test_json_of_something_else_is_our_own_mistake():
    with pytest.raises(TypeError, match="object"):
        console.print_json(object())


def become_a_terminal(monkeypatch):
    """Of 60 columns. To be called in a test: pytest changes sys.stdout after fixtures were made."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")


def test_where_a_table_is_too_wide_only_its_long_columns_are_folded(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    console.print_table(("NAME", "ALIASES", "SIZE"), [("x" * 70, "canary:3", "21.9 kB")], empty="none")
    lines = capsys.readouterr().out.splitlines()
    assert any("canary:3" in line and "21.9 kB" in line for line in lines)
    assert max(map(len, lines[1:])) <= 60  # the header has escapes


def test_what_spills_goes_under_its_row_only_where_it_is_too_long(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [("config", "rank", "4", "8"), ("data", "run", "run-" + "a" * 26, "run-" + "b" * 26)]
    console.print_table(("PART", "KEY", "mood:1", "mood:2"), rows, empty="none", spill=("mood:1", "mood:2"))
    assert capsys.readouterr().out.splitlines() == [
        "PART    KEY   mood:1  mood:2",
        "config  rank  4       8",
        "data    run",
        "  mood:1 run-" + "a" * 26,
        "  mood:2 run-" + "b" * 26,
    ]


def test_a_table_of_markdown_ends_nothing_in_dots(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    console.print_markdown(f"| | |\n| --- | --- |\n| digest | sha256:{'0123456789' * 6} |\n")
    out = capsys.readouterr().out
    assert "…" not in out
    assert "0123456789" * 6 in "".join(re.sub(r"\x1b\[[\d;]*m", "", out).split())


def test_facts_are_folded_at_spaces_beside_their_names(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    console.print_facts((("labels", "word " * 20), ("name", "x")))
    first, *rest, last = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert first.startswith("labels  word")
    assert all(line.startswith("        word") for line in rest)
    assert max(map(len, [first, *rest])) <= 60
    assert last == "name    x"


def test_markdown_is_rendered_in_a_terminal_without_its_front_matter(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    console.print_markdown("---\nbase_model: tiny\n---\nSome **bold** words\n")
    out = capsys.readouterr().out
    assert "bold" in out
    assert "**" not in out
    assert "base_model" not in out


def test_markdown_in_a_pipe_is_as_it_was_written(capsys):
    console.print_markdown("---\na: b\n---\n**bold**\n")
    assert capsys.readouterr().out == "---\na: b\n---\n**bold**\n"


@pytest.mark.parametrize(("count", "text"), [(0, "0 keys"), (1, "1 key"), (2000, "2,000 keys")])
def test_a_number_and_its_noun_agree(count, text):
    assert console.human_number(count, "key") == text


def test_where_a_table_is_too_wide_the_columns_named_go_under_their_row(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    digest = "sha256:" + "5" * 44
    rows = [("a.json", digest, "so " * 20)]
    console.print_table(("PATH", "DIGEST", "WHY"), rows, empty="none", under=("DIGEST", "WHY"))
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert lines[:3] == ["PATH", "a.json", f"  digest {digest}"]
    assert lines[3].startswith("  why so so")
    assert lines[4].startswith("      so so")
    assert max(map(len, lines)) <= 60


def test_where_there_is_room_every_column_stands_beside_the_others(capsys, monkeypatch):
    become_a_terminal(monkeypatch)
    console.print_table(("PATH", "DIGEST"), [("a.json", "sha256:5")], empty="none", under=("DIGEST",))
    assert capsys.readouterr().out.splitlines()[1].split() == ["a.json", "sha256:5"]
