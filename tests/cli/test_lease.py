"""A run belongs to the process that trains it, as long as that lives."""

import json
import socket
import subprocess
import sys

import pytest

from umbel.cli.train.lease import ending, holding, is_gone, owner
from umbel.core.errors import Conflict, Interrupted
from umbel.training.runlog import OpenedRuns


def test_an_owner_is_gone_only_where_its_process_is_known_to_be_dead():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert is_gone(f"{socket.gethostname()}:{dead.pid}")
    assert not is_gone(owner())
    assert not is_gone(f"elsewhere:{dead.pid}")
    assert not is_gone("nobody")


def test_a_run_is_held_while_the_block_works_and_let_go_afterwards(registry):
    run = registry.runs.start(name="held", params={}, seed=0)
    with holding(registry, [run]):
        assert registry.runs.get(run).lease_owner == owner()
        with pytest.raises(Conflict):
            registry.runs.take(run, "elsewhere:1", gone=is_gone)
    assert registry.runs.get(run).lease_owner is None


def test_an_error_ends_a_run_with_its_reason_and_an_interruption_leaves_it_open(registry):
    failed, stopped, over = (registry.runs.start(name="held", params={}, seed=0) for _ in range(3))
    registry.runs.finish(over, status="succeeded")
    with pytest.raises(ZeroDivisionError), ending(registry, [failed, over]):
        raise ZeroDivisionError("by nought")
    with pytest.raises(Interrupted), ending(registry, [stopped]):
        raise Interrupted("interrupted.")
    assert (registry.runs.get(failed).status, registry.runs.get(failed).error) == (
        "failed",
        "ZeroDivisionError: by nought",
    )
    assert registry.runs.get(stopped).finished_at is None
    assert registry.runs.get(over).status == "succeeded"


def test_a_run_has_succeeded_once_its_block_is_left_with_what_training_found(registry):
    run, failed = (registry.runs.start(name="held", params={}, seed=0) for _ in range(2))
    with ending(registry, [run, failed]):
        log = OpenedRuns(registry, [run, failed])
        log.finish(run, status="succeeded", summary={"steps": 7})
        log.finish(failed, status="failed", error="nan")
        assert registry.runs.get(run).status == "running"
    done = registry.runs.get(run)
    assert (done.status, done.summary) == ("succeeded", {"steps": 7})
    assert registry.runs.get(failed).status == "failed"


def test_a_lease_that_was_there_before_stays(registry):
    registry.runs.enqueue(name="held", params={}, seed=0)
    run = registry.runs.lease(owner())
    with holding(registry, [run.id], leased=run.id):
        pass
    assert registry.runs.get(run.id).lease_owner == owner()


@pytest.fixture
def paused(run, registry, tmp_path, monkeypatch):
    """A run that Ctrl-C stopped at its first step."""
    from umbel.cli.train.interrupt import Stopping

    rows = [{"text": f"thing {i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--name", "paused", "--task", "classify", "--data", str(tmp_path / "rows.jsonl"), "--steps", "4")
    with monkeypatch.context() as patched:
        patched.setattr(Stopping, "__call__", lambda self: "interrupted")
        assert run("train", *words, "--quiet").code == 130
    (left,) = registry.runs.list(name="paused").items
    return left


def test_a_run_that_ctrl_c_stopped_is_no_workers(run, registry, paused):
    left = paused
    assert (left.status, left.lease_owner) == ("running", None)
    assert run("runs", "list", "--name", "paused").rows[0][2] == "interrupted"
    assert f"umbel runs resume {left.id}" in run("doctor").out
    assert registry.runs.lease("worker:1", lease_ms=-1) is None


def test_a_run_that_ctrl_c_stopped_is_cancelled_at_once_and_still_goes_on_when_asked(run, registry, paused):
    assert run("runs", "cancel", "paused").out == f"{paused.id} (paused) is cancelled\n"
    assert registry.runs.get(paused.id).status == "cancelled"
    assert "0 running, none of them interrupted" in run("doctor").out
    assert run("runs", "logs", "paused", "-f").out.splitlines()[-1].endswith("cancelled")
    assert run("train", "--resume", paused.id, "--quiet").code == 0
    assert registry.runs.get(paused.id).status == "succeeded"


def test_a_wish_to_cancel_that_no_process_heard_is_over_once_somebody_resumes(run, registry, paused):
    registry.runs.cancel(paused.id)
    assert registry.runs.get(paused.id).cancel_requested
    assert run("train", "--resume", paused.id, "--quiet").code == 0
    assert registry.runs.get(paused.id).status == "succeeded"


def test_a_worker_that_takes_over_obeys_the_wish_to_cancel(run, registry, paused):
    registry.runs.take(paused.id, "gone:1", gone=is_gone)
    registry.runs.cancel(paused.id)
    assert registry.runs.lease(owner(), lease_ms=-1).id == paused.id
    assert run("train", "--resume", paused.id, "--quiet").code != 0
    assert registry.runs.get(paused.id).status == "cancelled"


def test_following_a_run_that_nobody_works_on_ends_and_says_how_it_goes_on(run, paused):
    answer = run("runs", "logs", "paused", "-f")
    assert f"umbel runs resume {paused.id}" in answer.err


def test_an_adapters_name_resumes_the_newest_run_of_it_that_is_left(run, registry, paused):
    registry.finish(registry.start(name="paused", params={}, seed=1), status="cancelled")  # newer, with nothing left
    assert run("train", "--resume", "paused", "--quiet").code == 0
    assert registry.runs.get(paused.id).status == "succeeded"
    again = run("train", "--resume", "paused")
    assert (again.code, "it became paused:1" in again.err) == (4, False)  # the newest that is over is the other one
    assert run("train", "--resume", paused.id).err.startswith(f"error: {paused.id} has succeeded already: it became")


def test_a_run_that_another_process_trains_is_not_resumed(run, registry, stocked, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n' * 9)
    params = {"name": "held", "data": str(tmp_path / "rows.jsonl"), "task": "classify"}
    held = registry.runs.start(name="held", params=params, seed=0, owner="elsewhere:1")
    folder = stocked / "runs" / held
    folder.mkdir(parents=True)
    (folder / "runs").write_text(held)
    answer = run("runs", "resume", "held")
    assert answer.code == 4
    assert "worked on by elsewhere:1" in answer.err


def test_a_sweep_killed_before_its_first_checkpoint_is_begun_anew_as_a_sweep(run, registry, stocked, tmp_path):
    from umbel.cli.train.begin import begin
    from umbel.core.settings import Settings
    from umbel.training.sweep.grid import grid_of
    from umbel.training.task import Task

    rows = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "ab"[i % 2]} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(name="swept", data=str(tmp_path / "rows.jsonl"), task="classify", steps=4)
    begin(registry, Settings.load(), [task], None, "tiny", grid_of(task, ["lr=1e-4,1e-2"], 32))
    for each in registry.runs.list(name="swept").items:
        registry.runs.release(each.id, owner())
    answer = run("runs", "resume", "swept", "--json", "--quiet")
    assert answer.code == 0, answer.err
    (told,) = json.loads(answer.out)
    assert told["version"]["name"] == "swept"
    assert len(told["sweep"]["tried"]) == 2


def test_a_job_of_torchrun_that_died_before_its_first_checkpoint_goes_on_with_all_its_runs(
    registry, stocked, monkeypatch
):
    from umbel.cli.train.begin import begin
    from umbel.cli.train.how import How
    from umbel.core.settings import Settings
    from umbel.training.task import Task

    tasks = [Task(name=name, data="rows.jsonl", task="classify") for name in ("one", "two")]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    first = begin(registry, Settings.load(), tasks, None, "tiny", how=How(pack=True))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = begin(registry, Settings.load(), tasks, None, "tiny", how=How(pack=True))
    assert (again.runs, again.tasks) == (first.runs, tasks)
    assert How.read(again.folder).pack
    assert {each.status for each in registry.runs.list().items if each.id in first.runs} == {"running"}
    assert len([each for each in registry.runs.list().items if each.name in ("one", "two")]) == 2
