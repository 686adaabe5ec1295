"""``umbel adapters``: looking, comparing, retiring, tagging."""

import json
from contextlib import suppress

import pytest

from umbel.core.errors import Conflict


def names(answer):
    return [row[0] for row in answer.rows]


def test_the_list_shows_each_adapter_by_its_champion(run):
    answer = run("adapters", "list")
    assert answer.out.splitlines()[0].split("\t") == [
        "NAME",
        "VERSION",
        "OUTPUT HEAD",
        "METHOD",
        "SIZE",
        "METRIC",
        "ALIASES",
    ]
    assert [row[:4] for row in answer.rows] == [["mood", "1", "classify", "lora"], ["tone", "1", "classify", "ia3"]]
    assert answer.rows[0][-1] == "canary:3 champion:1"


def test_at_80_columns_a_row_of_the_list_is_one_line_and_long_aliases_go_under_it(run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("adapters", "list", "--alias", "canary").out.splitlines()
    assert lines[1].split()[-3:] == ["accuracy", "0.82", "(reported)"]
    assert lines[2] == "  aliases canary:3 champion:1"


def test_a_newer_version_that_no_alias_tells_of_is_in_the_list_until_it_is_yanked(run, registry):
    registry.aliases.remove("mood", "canary")
    assert run("adapters", "list").rows[0][-1] == "champion:1 latest:3"
    registry.versions.yank("mood:3", reason="wrong data")
    assert run("adapters", "list").rows[0][-1] == "champion:1 latest:2"
    (mood, tone) = json.loads(run("adapters", "list", "--json").out)["items"]
    assert (mood["latest"], mood["last_number"], tone["latest"]) == (2, 3, 1)
    registry.aliases.set("mood:2", "champion")
    assert run("adapters", "list").rows[0][-1] == "champion:2"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--search", "TWEET"], ["mood"]),
        (["--method", "ia3"], ["tone"]),
        (["--output-head", "classify"], ["mood", "tone"]),
        (["--output-head", "generate"], []),
        (["--tag", "team=search"], ["mood"]),
        (["--tag", "team=other"], []),
        (["--state", "ready"], ["mood", "tone"]),
        (["--state", "yanked"], []),
        (["--backbone", "tiny"], ["mood", "tone"]),
        (["--alias", "canary"], ["mood"]),
        (["--metric", "accuracy>=0.5"], ["tone"]),
        (["--metric", "accuracy<0.9", "--metric", "accuracy>0.6", "--alias", "canary"], ["mood"]),
        (["--sort", "name", "--desc"], ["tone", "mood"]),
        (["--sort", "bytes"], ["tone", "mood"]),
        (["--sort", "metric:accuracy"], ["tone", "mood"]),
    ],
)
def test_filters_and_orders_are_the_registrys(run, filters, found):
    assert names(run("adapters", "list", *filters)) == found


def test_a_list_of_an_alias_shows_the_version_behind_it_with_the_metric_asked_for(run):
    (row,) = run("adapters", "list", "--alias", "canary", "--metric", "accuracy>0").rows
    assert (row[1], row[5]) == ("3", "accuracy 0.82 (reported)")


def test_pages_join_to_the_whole_list_and_each_tells_the_next_command(run, monkeypatch):
    words = ["adapters", "list", "--limit", "1"]
    monkeypatch.setattr("sys.argv", ["umbel", *words])
    first = run(*words)
    command = first.err.removeprefix("More: ").split()
    assert command[:5] == ["umbel", *words]
    monkeypatch.setattr("sys.argv", command)
    second = run(*command[1:])
    assert names(first) + names(second) == ["mood", "tone"]
    assert second.err == ""


def test_json_has_everything_and_the_next_cursor(run):
    answer = json.loads(run("adapters", "list", "--limit", "1", "--json").out)
    assert answer["items"][0]["shown"]["contract"]["labels"] == ["negative", "neutral", "positive"]
    assert answer["next"]


def test_no_match_is_told_apart_from_an_empty_registry(run, registry):
    assert run("adapters", "list", "--search", "nothing").err == "No adapter is like that.\n"
    for name in ("mood", "tone"):
        registry.adapters.remove(name)
    assert "umbel train" in run("adapters", "list").err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["list", "--state", "redy"], 2, "deprecated, yanked"),
        (["list", "--method", "lorra"], 2, "did you mean lora?"),
        (["list", "--output-head", "clasify"], 2, "did you mean classify? use generate"),
        (["list", "--output-head", "x"], 2, "generate, classify"),
        (["list", "--metric", "accuracy=1"], 2, "accuracy>=0.8"),
        (["list", "--tag", "team"], 2, "team=search"),
        (["list", "--sort", "age"], 2, "metric:accuracy"),
        (["list", "--limit", "0"], 2, "limit must be 1 to 1000"),
        (["list", "--page", "x"], 2, "cursor"),
        (["list", "--backbone", "nope"], 3, "umbel pull backbone"),
        (["list", "--backbone", "tinny"], 3, "did you mean tiny?"),
        (["show", "nope"], 3, "umbel adapters list"),
        (["show", "mood:9"], 3, "umbel adapters show mood"),
        (["show", "mood:x"], 2, "name:3"),
        (["show", "mood@nope"], 3, "no alias 'nope'"),
        (["card", "tone"], 3, "no card"),
        (["diff", "mood:1", "mood:9"], 3, "no mood:9"),
        (["diff", "mood:1"], 2, "Missing argument"),
        (["yank", "mood", "--reason", "x"], 2, "which version"),
        (["yank", "mood:1"], 2, "--reason"),
        (["unyank", "mood:1"], 4, "not yanked"),
        (["deprecate", "mood:9", "--reason", "x"], 3, "no mood:9"),
        (["rm", "mood:1"], 4, "alias champion"),
        (["rm", "mood"], 2, "--yes"),
        (["rm", "nope", "--yes"], 3, "no adapter 'nope'"),
        (["tag", "set", "mood", "team"], 2, "key=value"),
        (["tag", "set", "nope", "a=b"], 3, "no adapter 'nope'"),
        (["tag", "rm", "nope", "a"], 3, "no adapter 'nope'"),
        (["export", "nope", "x"], 3, "no adapter 'nope'"),
    ],
)
def test_a_wrong_command_ends_with_its_code_and_says_what_is_right(run, words, code, told):
    answer = run("adapters", *words)
    assert answer.code == code, answer.err
    assert told in answer.err
    assert answer.out == ""


def test_an_adapter_is_shown_with_versions_moves_and_by_choice_its_card(run):
    short = run("adapters", "show", "mood")
    assert "The mood of a text." not in short.out
    assert "Its card: umbel adapters show mood --card" in short.err
    out = run("adapters", "show", "mood", "--card").out
    assert "The mood of a tweet" in out
    assert "team=search" in out
    assert [line.split("\t")[0] for line in out.splitlines() if "\tready\t" in line] == ["3", "2", "1"]
    assert "better at irony" in out
    assert out.endswith("Card of mood:1\n---\nbase_model: tiny\n---\n# mood\n\nThe mood of a text.\n")


def test_a_version_is_shown_with_lineage_config_contract_files(run, registry):
    out = run("adapters", "show", "mood@canary").out
    assert "mood:3 <- mood:2 <- mood:1" in out
    assert "rank 4" in out
    (config,) = [line for line in out.splitlines() if line.startswith("config")]
    assert not [part for part in config.split("; ") if len(part.split()) < 2]  # a setting that is empty is left out
    assert "negative, neutral, positive" in out
    assert "tiny sha256:" in out
    assert registry.versions.get("mood:3").files[0].digest in out
    assert "better at irony" in out
    assert "first version" not in out  # a move of champion between other versions


def test_of_a_version_its_state_and_figures_come_first_and_the_card_by_choice(run):
    lines = run("adapters", "show", "mood:3").out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["version", "state", "aliases", "reported", "(by"]
    assert "Its card: umbel adapters show mood:1 --card" in run("adapters", "show", "mood:1").err
    assert run("adapters", "show", "mood:1", "--card").out.endswith("The mood of a text.\n")
    assert "card" not in run("adapters", "show", "mood:2").err  # it has none
    assert "mood:2 has no card" in run("adapters", "show", "mood:2", "--card").err


def test_show_as_json_is_one_value(run):
    adapter = json.loads(run("adapters", "show", "mood", "--json").out)
    assert [version["number"] for version in adapter["versions"]] == [3, 2, 1]
    version = json.loads(run("adapters", "show", "mood:3", "--json").out)
    assert [parent["number"] for parent in version["lineage"]] == [2, 1]
    assert version["version"]["metrics"] == {"accuracy": 0.82}


def test_a_lineage_ends_where_a_parent_was_deleted(run, registry):
    registry.versions.remove("mood:2")
    assert "mood:3 <- mood:2\n" in run("adapters", "show", "mood:3").out


def test_the_card_comes_as_it_was_written(run):
    assert run("adapters", "card", "mood:1").out == "---\nbase_model: tiny\n---\n# mood\n\nThe mood of a text.\n"


def test_a_diff_names_what_differs_and_where_the_weights_do(run):
    out = run("adapters", "diff", "mood:1", "mood:2").out
    cells = [line.split("\t") for line in out.splitlines()]
    assert ["metrics", "accuracy", "", "0.81"] in cells
    assert ["data", "seed", "", "2"] in cells
    places = {row[0]: float(row[1]) for row in cells if len(row) == 3 and row[0] != "LAYER"}
    assert list(places) == ["0", "1", "output head"]
    assert all(0.5 < change < 2 for change in places.values())  # two seeds


def test_equal_weights_are_told_in_one_line(run, registry, published, made):
    contract = registry.versions.get("mood:1").contract.model_copy(update={"description": "another"})
    published(registry, "mood", made(1, contract=contract))
    out = run("adapters", "diff", "mood:1", "mood:4").out
    assert "contract\tdescription" in out
    assert out.endswith("\nTheir weights are the same.\n")
    assert "LAYER" not in out


def test_a_list_of_versions_marks_what_nobody_here_measured(run):
    rows = [line.split("\t") for line in run("adapters", "show", "mood").out.splitlines() if "\tready\t" in line]
    assert rows[0][6] == "accuracy 0.82 (reported)"
    assert "(reported)" not in rows[2][6]  # it has no figure


def test_name_and_numbers_name_two_versions(run):
    said = run("adapters", "diff", "mood:1", "mood:2").out
    assert run("adapters", "diff", "mood", "1", "2").out == run("adapters", "diff", "mood:1", "2").out == said
    wrong = run("adapters", "diff", "mood:1", "mood:2", "3")
    assert (wrong.code, "mood:1 mood:2" in wrong.err) == (2, True)
    assert "as mood:3" in run("adapters", "show", "3").err


def test_what_has_another_rank_is_not_compared_and_the_diff_says_so(run):
    answer = run("adapters", "diff", "mood:1", "mood:3")
    assert "config\tmethod.rank\t8\t4" in answer.out
    assert "differ in rank" in answer.err
    assert "one is lora, the other ia3" in run("adapters", "diff", "mood", "tone").err


def test_a_version_does_not_differ_from_itself(run):
    answer = run("adapters", "diff", "mood:1", "mood@champion")
    assert (answer.out, answer.code) == ("", 0)
    assert "the same answers" in answer.err


def test_a_diff_as_json_has_words_and_weights(run):
    found = json.loads(run("adapters", "diff", "mood:1", "mood:2", "--json").out)
    assert found["diff"]["metrics"] == [{"key": "accuracy", "before": None, "after": 0.81}]
    assert [place for place, _ in found["weights"]["layers"]] == ["0", "1", "output head"]
    assert json.loads(run("adapters", "diff", "mood:1", "mood:2", "--no-weights", "--json").out)["weights"] is None


def test_a_yanked_version_tells_which_aliases_answer_no_more(run, registry):
    answer = run("adapters", "yank", "mood:3", "--reason", "leaks names")
    assert answer.out == "mood:3 is yanked: leaks names\n"
    assert "umbel rollback mood --alias canary" in answer.err
    assert "3 yanked" in run("adapters", "list", "--alias", "canary").out
    assert run("adapters", "unyank", "mood:3").out == "mood:3 is ready again\n"
    assert registry.resolve("mood:3").number == 3


def test_a_deprecated_version_answers_as_before(run, registry):
    assert run("adapters", "deprecate", "mood:1", "--reason", "old").out == "mood:1 is deprecated: old\n"
    assert registry.resolve("mood:1").number == 1


def test_one_version_goes_and_the_others_stay(run):
    assert run("adapters", "rm", "mood:2").out == "mood:2 is removed\n"
    assert [row["number"] for row in json.loads(run("adapters", "show", "mood", "--json").out)["versions"]] == [3, 1]


def test_a_whole_adapter_goes_only_when_that_was_confirmed(run, registry, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(Conflict("no")))
    with suppress(Conflict):
        run("adapters", "rm", "tone")
    assert registry.adapters.get("tone").name == "tone"
    assert run("adapters", "rm", "tone", "--yes").out == "tone is removed\n"
    assert names(run("adapters", "list")) == ["mood"]


def test_tags_are_set_and_removed_one_by_one(run):
    assert run("adapters", "tag", "set", "mood", "language=en", "team=a=b").out == "language  en\nteam      a=b\n"
    assert run("adapters", "tag", "rm", "mood", "team", "not-there").out == "language  en\n"
    assert json.loads(run("adapters", "tag", "rm", "mood", "language", "--json").out) == {}
