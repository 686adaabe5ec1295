"""`umbel train --queue` leaves a run to `umbel worker`, which trains and publishes it, or says why not."""

import json

import pytest


@pytest.fixture
def data(stocked, tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": f"{word} number {i}", "label": label} for i in range(20) for word, label in [("a", "x"), ("b", "y")]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def queue(run, data, *words: str) -> str:
    flags = ("--task", "classify", "--data", data, "--steps", "2", "--queue", "--json")
    answer = run("train", *flags, *(words or ("--name", "queued")))
    assert answer.code == 0, answer.err
    return json.loads(answer.out)[0]


def test_a_queued_run_waits_until_a_worker_trains_and_publishes_it(run, data, registry):
    waiting = queue(run, data)
    assert registry.runs.get(waiting).status == "queued"
    answer = run("worker", "--once", "--quiet")
    assert answer.code == 0, answer.err
    done = registry.runs.get(waiting)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert registry.versions.get("queued:1").run == waiting
    assert registry.runs.points(waiting)


def test_a_queued_run_finds_its_file_wherever_the_worker_stands(run, data, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waiting = queue(run, "rows.jsonl", "--name", "moved", "--test", "rows.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("worker", "--once", "--quiet").code == 0
    assert registry.runs.get(waiting).status == "succeeded", registry.runs.get(waiting).error


def test_one_that_fails_is_told_in_the_registry_and_the_next_is_trained(run, data, registry, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x", "label": "y"}\n{"oops": 1}\n')
    first = queue(run, str(bad), "--name", "broken")
    second = queue(run, data)
    assert run("worker", "--once", "--quiet").code == 0
    failed = registry.runs.get(first)
    assert failed.status == "failed"
    assert "line 2" in (failed.error or "")
    assert registry.runs.get(second).status == "succeeded"


def test_a_cancelled_run_is_never_begun(run, data, registry):
    waiting = queue(run, data)
    registry.runs.cancel(waiting)
    assert run("worker", "--once", "--quiet").code == 0
    assert registry.runs.get(waiting).status == "cancelled"
    assert [each.name for each in registry.adapters.list().items if each.name == "queued"] == []


def test_a_worker_trains_as_the_queue_was_asked(run, data, registry, stocked):
    """The same weights as a run that did not wait, and others than without the flags."""
    asked = ("--pack", "--dtype", "bf16", "--backbone", "tiny")
    waiting = queue(run, data, "--name", "queued", *asked)
    assert run("worker", "--once", "--quiet").code == 0
    flags = ("--task", "classify", "--data", data, "--steps", "2", "--quiet")
    assert run("train", "--name", "now", *flags, *asked).code == 0
    assert run("train", "--name", "other", *flags).code == 0
    weights = {name: registry.versions.get(f"{name}:1").weights_sha256 for name in ("queued", "now", "other")}
    assert weights["queued"] == weights["now"] != weights["other"]
    assert registry.runs.get(waiting).params["pack"] is True


def test_a_worker_is_one_process(run, data):
    answer = run("train", "--name", "many", "--task", "classify", "--data", data, "--queue", "--nproc", "2")
    assert answer.code == 2
    assert "one process" in answer.err
