"""``umbel alias``, ``promote``, ``rollback``: what moves."""

import json
import re

import pytest

from umbel.registry.aliases import Aliases


def test_an_alias_is_made_moved_and_removed(run):
    assert run("alias", "set", "mood", "beta", "2").out == "mood@beta is mood:2 (new)\n"
    assert run("alias", "set", "mood", "beta", "3", "--expect", "2").out == "mood@beta is mood:3 (was mood:2)\n"
    assert run("alias", "set", "mood@champion", "beta").out == "mood@beta is mood:1 (was mood:3)\n"
    assert run("alias", "set", "mood:1", "beta").out == "mood@beta is mood:1 already\n"
    assert run("alias", "rm", "mood", "beta", "--expect", "1").out == "mood@beta is gone; it was mood:1\n"
    assert [row[3:5] for row in run("alias", "history", "mood", "beta").rows] == [
        ["", "2"],
        ["2", "3"],
        ["3", "1"],
        ["1", ""],
    ]


@pytest.mark.parametrize(
    "words", [["promote", "mood:2"], ["alias", "set", "mood", "champion", "2"], ["rollback", "mood"]]
)
def test_who_looked_before_somebody_else_moved_it_loses(run, registry, monkeypatch, words):
    """Between our look and our move another process moves it: ours fails, although nobody passed --expect."""
    looked = Aliases.get

    def get(self, name):
        seen = looked(self, name)
        self.set("mood:3", "champion", actor="somebody else")
        return seen

    monkeypatch.setattr(Aliases, "get", get)
    answer = run(*words)
    assert answer.code == 4
    assert "somebody moved it" in answer.err
    assert registry.resolve("mood").number == 3


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["alias", "set", "mood", "beta", "9"], 3, "no mood:9"),
        (["alias", "set", "mood", "beta"], 2, "which version"),
        (["alias", "set", "mood:2", "beta", "3"], 2, "both say which version"),
        (["alias", "set", "mood", "7", "2"], 2, "cannot be an alias"),
        (["alias", "set", "mood", "beta", "2", "--expect", "1"], 4, "not as expected"),
        (["alias", "set", "mood", "canary", "2", "--expect", "0"], 4, "points at mood:3"),
        (["alias", "set", "nope", "beta", "1"], 3, "no adapter 'nope'"),
        (["alias", "rm", "mood", "beta"], 3, "no alias 'beta'"),
        (["alias", "rm", "mood", "canary", "--expect", "1"], 4, "somebody moved it"),
        (["alias", "history", "nope"], 3, "no adapter 'nope'"),
        (["promote", "mood"], 2, "which version"),
        (["promote", "mood:9"], 3, "no mood:9"),
        (["promote", "mood:2", "--expect", "3"], 4, "points at mood:1"),
        (["rollback", "mood"], 4, "mood@champion is at mood:1, and nothing is before that"),
        (["rollback", "nope"], 3, "no adapter 'nope'"),
    ],
)
def test_what_cannot_move_says_why(run, words, code, told):
    answer = run(*words)
    assert answer.code == code, answer.err
    assert told in answer.err
    assert answer.out == ""


def test_a_promote_takes_the_bare_name_and_a_rollback_gives_it_back(run, registry):
    answer = run("promote", "mood:3", "--reason", "won", "--evidence", "exp-1")
    assert answer.out == "mood now answers with mood:3 (was mood:1; undo: umbel rollback mood)\n"
    assert registry.resolve("mood").number == 3
    assert run("promote", "mood@canary").out == "mood answers with mood:3 already\n"
    answer = run("rollback", "mood", "--reason", "worse", "--evidence", "eval-2")
    assert answer.out == "mood answers with mood:1 again (was mood:3)\n"
    assert registry.resolve("mood").number == 1
    moves = [(event.kind, event.reason, event.evidence) for event in registry.aliases.history("mood", "champion")]
    assert moves[1:] == [("set", "won", "exp-1"), ("rollback", "worse", "eval-2")]


def test_a_rollback_with_nothing_before_it_says_where_the_name_is_and_how_to_name_a_version(run):
    run("promote", "mood:2")
    assert run("rollback", "mood").code == 0
    answer = run("rollback", "mood")
    assert answer.code == 4
    assert "mood@champion is at mood:1, and nothing is before that" in answer.err
    assert "umbel promote mood:NUMBER" in answer.err


def test_a_rollback_to_a_yanked_version_names_it_and_one_of_a_removed_alias_says_so(run):
    run("alias", "set", "mood", "canary", "2")
    run("adapters", "yank", "mood:3", "--reason", "leaks")
    assert "what it was before (mood:3) answers no more" in run("rollback", "mood", "-a", "canary").err
    run("alias", "rm", "mood", "canary")
    assert run("rollback", "mood", "-a", "canary").out == "mood@canary answers with mood:2 again (was removed)\n"


def test_another_alias_rolls_back_too(run):
    run("alias", "set", "mood", "canary", "2")
    answer = run("rollback", "mood", "--alias", "canary", "--expect", "2")
    assert answer.out == "mood@canary answers with mood:3 again (was mood:2)\n"


def test_a_yanked_version_is_not_promoted(run):
    run("adapters", "yank", "mood:2", "--reason", "leaks")
    answer = run("promote", "mood:2")
    assert answer.code == 1
    assert "yanked: leaks" in answer.err


def test_moves_as_json_are_the_event(run):
    event = json.loads(run("promote", "mood:2", "--json").out)
    assert (event["origin"], event["target"]) == (1, 2)
    assert json.loads(run("rollback", "mood", "--json").out)["kind"] == "rollback"
    assert json.loads(run("alias", "set", "mood", "x", "2", "--json").out)["target"] == 2
    assert json.loads(run("alias", "rm", "mood", "x", "--json").out)["target"] is None
    assert len(json.loads(run("alias", "history", "mood", "--json").out)) == 6


def test_a_long_history_breaks_no_word_at_80_columns(run, registry, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    registry.aliases.set("mood:2", "canary", reason="better than the control by thumbs: " + "+0.732 " * 12)
    lines = re.sub(r"\x1b\[\d*m", "", run("alias", "history", "mood", "canary").out).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if line.startswith("  reason")] == [["reason", "better"]] * 2
    assert [len(line.split()[0]) for line in lines if " UTC  canary  set " in line] == [10, 10]
