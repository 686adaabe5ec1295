"""``umbel runs`` and the curves it draws."""

import csv
import json
import math
import socket
import subprocess
import sys

import pytest

from umbel.cli import alive
from umbel.cli import runs as command
from umbel.cli.curves import curves, plot
from umbel.registry.records import MetricPoint


@pytest.fixture
def trained(registry):
    run = registry.start(name="mood", params={"rank": 8, "lr": 0.0005}, seed=7)
    for step in range(10):
        registry.metrics(run, step, {"loss": 2.0 - step / 10, "lr": 0.0005})
    registry.metrics(run, 9, {"validation_accuracy": 0.75, "grad_norm": math.nan})
    registry.event(run, "trained for 10 steps", data={"steps": 10})
    registry.finish(run, status="succeeded", summary={"best_step": 9})
    return run


def test_runs_are_listed_newest_first_and_filtered(run, registry, trained):
    waiting = registry.runs.enqueue(name="tone", params={}, seed=1)
    assert [row[:3] for row in run("runs", "list").rows] == [
        [waiting, "tone", "queued"],
        [trained, "mood", "succeeded"],
    ]
    assert [row[0] for row in run("runs", "list", "--name", "mood").rows] == [trained]
    assert [row[0] for row in run("runs", "list", "--status", "queued").rows] == [waiting]
    page = json.loads(run("runs", "list", "--limit", "1", "--json").out)
    assert [item["id"] for item in json.loads(run("runs", "list", "--page", page["next"], "--json").out)["items"]] == [
        trained
    ]


def test_a_run_whose_worker_fell_silent_reads_as_interrupted_and_its_time_stands_still(run, registry, monkeypatch):
    registry.start(name="mood", params={}, seed=1)
    assert run("runs", "list").rows[0][2] == "running"
    for module in (command, alive):
        monkeypatch.setattr(module, "now_ms", lambda: 2**42)
    _, _, status, _, took = run("runs", "list").rows[0]
    assert (status, took) == ("interrupted", "0.0 s")
    assert "umbel runs resume run-" in run("runs", "show", "mood").out


def test_a_run_whose_process_is_dead_reads_as_interrupted_at_once(run, registry):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = registry.runs.start(name="mood", params={}, seed=1, owner=f"{socket.gethostname()}:{dead.pid}")
    assert run("runs", "list").rows[0][2] == "interrupted"
    works = registry.start(name="tone", params={}, seed=1)
    told = json.loads(run("runs", "list", "--json").out)["items"]
    assert {each["id"]: each["status"] for each in told} == {gone: "interrupted", works: "running"}
    assert json.loads(run("runs", "show", "mood", "--json").out)["run"]["status"] == "interrupted"
    for status, wanted in (("interrupted", gone), ("running", works)):
        assert [row[0] for row in run("runs", "list", "--status", status).rows] == [wanted]
        assert [row[0] for row in run("runs", "list", "--status", status, "--limit", "1").rows] == [wanted]
    assert "running, succeeded, failed, cancelled, interrupted" in run("runs", "list", "--status", "dead").err


def test_a_run_is_shown_by_id_or_as_the_newest_of_its_adapter(run, trained):
    by_id, by_name = run("runs", "show", trained), run("runs", "show", "mood")
    assert by_id.out == by_name.out
    assert "rank 8; lr 0.0005" in by_id.out
    assert "best_step 9" in by_id.out
    assert "loss\t10\t2\t1.1\t1.1\t2" in by_id.out
    assert "grad_norm" not in by_id.out  # NaN alone
    assert "⠀" not in by_id.out  # no drawing in a pipe


def test_in_a_terminal_curves_are_drawn(run, trained, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = run("runs", "show", "mood", "--curve", "lr").out
    assert any(0x2801 <= ord(character) <= 0x28FF for character in out)


def test_a_curve_of_one_point_is_told_and_not_drawn(run, trained, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = run("runs", "show", "mood", "--curve", "validation_accuracy").out
    assert out.endswith("0.75 at step 9, its only point\n")
    assert "⠀" not in out


def test_curves_say_that_the_loss_is_not_smoothed_and_which_of_them_decides(run, registry, trained, monkeypatch):
    registry.metrics(trained, 10, {"validation_loss": 1.0})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = run("runs", "show", "mood").out
    assert "loss, of each step as it was" in out
    assert "validation_loss, where it is lowest the weights are kept" in out


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "resume"])
def test_of_a_run_that_is_not_there_the_nearest_is_told(run, registry, trained, command):
    assert "did you mean mood?" in run("runs", command, "moood").err
    cut_short = trained[:-3]
    assert f"did you mean {trained}?" in run("runs", command, cut_short).err
    assert "did you mean" not in run("runs", command, "irony").err


def test_of_a_run_from_before_its_judgement_was_kept_version_and_figures_are_told(run, registry):
    before = registry.start(name="mood", params={"gate": "accuracy>=0.9"}, seed=1)
    assert json.loads(run("runs", "show", "mood", "--json").out)["became"] is None
    registry.event(before, "published mood:4", data={"version": "mood:4", "accuracy": 0.75, "forgetting": 0.1})
    out = run("runs", "show", "mood").out
    assert "version  mood:4\njudged   accuracy 0.75, forgetting 0.1\n" in out
    assert "\ngate" not in out


def test_a_setting_that_is_empty_is_left_out(run, registry):
    registry.start(name="mood", params={"task": "classify", "labels": [], "template": ""}, seed=1)
    (asked,) = [line for line in run("runs", "show", "mood").out.splitlines() if line.startswith("asked")]
    assert asked.split(maxsplit=1)[1] == "task classify"


def test_every_point_goes_into_the_files(run, trained, tmp_path):
    png, table = tmp_path / "curves.png", tmp_path / "points.csv"
    assert run("runs", "show", "mood", "--png", str(png), "--csv", str(table)).code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 22
    assert {"metric": "loss", "step": "3", "value": "1.7"} in rows


def test_logs_are_what_it_said(run, trained):
    lines = run("runs", "logs", "mood").out.splitlines()
    assert [line.split(maxsplit=4)[4] for line in lines] == ["running", "trained for 10 steps (steps 10)", "succeeded"]
    events = [json.loads(line) for line in run("runs", "logs", trained, "--json").out.splitlines()]
    assert [event["seq"] for event in events] == [1, 2, 3]


def test_following_tells_each_step_once_whole_and_ends_with_the_run(run, registry, monkeypatch):
    """The run goes on a little whenever the follower waits."""
    monkeypatch.setattr(command, "POLL_SECONDS", 0)
    following = registry.start(name="tone", params={}, seed=1)
    turns = iter(
        [
            lambda: registry.metrics(following, 1, {"loss": 3.0}),
            lambda: registry.metrics(following, 2, {"loss": 2.0}),
            lambda: registry.metrics(following, 2, {"validation_loss": 2.5}),
            lambda: registry.finish(following, status="failed", error="out of memory"),
        ]
    )
    monkeypatch.setattr(command.time, "sleep", lambda _: next(turns)())
    lines = [json.loads(line) for line in run("runs", "logs", "tone", "-f", "--json").out.splitlines()]
    assert [line for line in lines if "step" in line] == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "validation_loss": 2.5},
    ]
    assert [line["message"] for line in lines if "seq" in line] == ["running", "out of memory"]


def test_a_run_that_waits_is_cancelled_at_once_and_one_that_works_is_asked(run, registry):
    waiting = registry.runs.enqueue(name="tone", params={}, seed=1)
    assert run("runs", "cancel", waiting).out == f"{waiting} (tone) is cancelled\n"
    working = registry.start(name="tone", params={}, seed=1)
    assert "stops at its next step" in run("runs", "cancel", "tone").out
    assert registry.cancelled(working)
    assert run("runs", "list").rows[0][2] == "running, to be cancelled"


def test_resuming_is_training_that_goes_on(run, registry, monkeypatch):
    asked = []
    monkeypatch.setattr("umbel.cli.train.command.train", lambda **given: asked.append(given))
    stopped = registry.start(name="tone", params={}, seed=1)
    assert run("runs", "resume", "tone", "--quiet").code == 0
    assert asked == [{"resume": stopped, "quiet": True, "as_json": False}]


def test_a_run_without_a_checkpoint_cannot_go_on(run, registry):
    registry.start(name="tone", params={}, seed=1)
    answer = run("runs", "resume", "tone")
    assert (answer.code, answer.out) == (3, "")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["show", "nope"], 3, "umbel runs list"),
        (["logs", "nope"], 3, "umbel runs list"),
        (["cancel", "nope"], 3, "umbel runs list"),
        (["cancel", "mood"], 4, "succeeded already"),
        (["resume", "mood"], 4, "succeeded already"),
        (["resume", "nope"], 3, "umbel runs list"),
        (["list", "--status", "done"], 2, "succeeded, failed"),
        (["show", "mood", "--curve", "nope"], 2, "it measured loss, lr"),
    ],
)
def test_a_wrong_command_says_what_is_right(run, trained, words, code, told):
    answer = run("runs", *words)
    assert (answer.code, answer.out) == (code, "")
    assert told in answer.err


def test_no_run_says_how_to_start_one(run):
    assert "umbel train" in run("runs", "list").err


def dots(lines):
    """Positions of the dots, from the left and from the top."""
    order = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
    rows = [line[line.index("┤" if "┤" in line else "│") + 1 :] for line in lines[:-1]]
    return {
        (2 * column + x, 4 * row + y)
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
        for x in (0, 1)
        for y in range(4)
        if (ord(cell) - 0x2800) & order[x][y]
    }


def test_a_falling_line_is_a_diagonal_from_corner_to_corner():
    lines = plot([(0, 1.0), (1, 0.0)], width=13, height=3)  # 10 cells of 2 x 4 dots beside "1 ┤"
    found = dots(lines)
    assert {x for x, _ in found} == set(range(20))
    assert all(abs(y - x * 11 / 19) <= 0.5 for x, y in found)


def test_a_plot_has_exactly_the_size_asked_for_and_names_its_ends():
    lines = plot([(0, 2.5), (50, 1.0), (100, 0.125)], width=60, height=5)
    assert [len(line) for line in lines] == [60] * 6
    assert lines[0].startswith("  2.5 ┤")
    assert lines[4].startswith("0.125 ┤")
    assert lines[5].split() == ["0", "100"]


def test_one_point_and_a_flat_curve_can_be_drawn():
    assert dots(plot([(3, 1.0)], width=20))
    flat = plot([(0, 1.0), (9, 1.0)], width=20)
    (at,) = {y for _, y in dots(flat)}
    assert [line.split()[0] for line in flat[:-1]].count("1") == 1  # named once, where it runs
    assert flat[at // 4].startswith("1 ┤")


def test_what_is_not_finite_leaves_a_gap():
    points = [MetricPoint("loss", 0, 1.0), MetricPoint("loss", 1, None), MetricPoint("loss", 2, 3.0)]
    assert curves(points) == {"loss": [(0.0, 1.0), (2.0, 3.0)]}
