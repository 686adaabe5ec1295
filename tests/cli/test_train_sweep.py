"""``umbel train --sweep``: one winner is published, and everybody can see what it was chosen from."""

import json

import pytest

ROWS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "glad" if i % 2 else "sad"} for i in range(100)]


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "joy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "joy.toml").write_text('name = "joy"\ndata = "joy.jsonl"\ntask = "classify"\nsteps = 16\nrank = 2\n')
    return str(tmp_path / "joy.toml")


def test_the_winner_alone_is_published_and_the_card_terminal_and_json_tell_of_the_others(run, file, registry):
    answer = run("train", file, "--sweep", "lr=1e-5,1e-2", "--sweep", "rank=2,4")
    assert answer.code == 0, answer.err
    assert "4 configurations" in answer.err
    assert "joy.3" in answer.err
    assert [version.number for version in registry.versions.list("joy").items] == [1]
    card = registry.versions.get("joy:1").card
    for part in ("## Sweep", "1/8, 1/4 of the steps", "| lr | rank | loss |", "| 1e-2 | ", "| 1e-5 | "):
        assert part in card
    assert card.index("| 1e-2 | ") < card.index("| 1e-5 | ")
    assert "Sweep: the half" in answer.out
    assert answer.out.count("dominated") == 3
    assert {each.name for each in registry.runs.list(name="joy").items} == {"joy"}
    assert len(registry.runs.list(name="joy").items) == 4


def test_json_has_the_whole_table(run, file):
    answer = run("train", file, "--sweep", "auto", "--json", "--quiet", "--no-publish")
    (told,) = json.loads(answer.out)
    assert told["name"] == "joy"
    assert len(told["sweep"]["tried"]) == 8
    assert told["sweep"]["tried"][0]["loss"] == min(each["loss"] for each in told["sweep"]["tried"][:2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sweep", "lr"), "no list of values"),
        (("--sweep", "limit=5,6"), "cannot be swept"),
        (("--sweep", "auto", "--queue"), "a queued run"),
        (("--sweep", "rnak=4,8"), "did you mean 'rank'"),
        (("--sweep", "auto", "--validation-fraction", "0"), "no validation rows"),
    ],
)
def test_a_sweep_that_cannot_be_is_told_and_why(run, file, words, said):
    answer = run("train", file, *words)
    assert answer.code == 2
    assert said in answer.err


def test_two_tasks_are_not_swept_and_neither_is_a_resumed_run(run, file):
    assert "2 tasks" in run("train", file, file, "--sweep", "auto").err
    assert "leave --sweep out" in run("train", "--resume", "run-1", "--sweep", "auto").err
