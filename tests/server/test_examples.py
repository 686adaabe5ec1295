"""The examples run as they stand, against a real server."""

import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.registry.registry import Registry

EXAMPLES = Path(__file__).parents[2] / "examples"


ASKED = ["models: tiny", "mood says", "writer writes:", "registry: mood", "adapter_not_found"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ask.py", "mood", "writer"), ASKED),
        (("ask_many.py", "mood"), ["what a lovely day", "32 requests in"]),
        (("openai_sdk.py", "writer"), ["writer:1 writes:", "streamed:", "NotFoundError: adapter_not_found"]),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)  # fmt: skip
def test_an_example_runs_and_says_what_it_should(words, told, live):
    script, *models = words
    command = [sys.executable, str(EXAMPLES / script), live.url, *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for part in told:
        assert part in done.stdout


@pytest.mark.parametrize("words", [("ask.py", "mood", "writr"), ("ask_many.py", "moood"), ("openai_sdk.py", "writr")])
def test_an_example_whose_adapter_is_not_there_ends_in_an_error_with_the_usage(words, live):
    script, *models = words
    command = [sys.executable, str(EXAMPLES / script), live.url, *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"there is no adapter '{models[-1]}'" in done.stderr
    assert "Error code" not in done.stderr
    assert "umbel serve" not in done.stderr  # it runs
    assert done.stderr.splitlines()[-1].startswith(f"usage: examples/{script} [URL ")


def test_pairs_of_one_word_each_are_made_for_an_embedder(tmp_path):
    dataset = tmp_path / "home" / "datasets" / "pronounce"
    dataset.mkdir(parents=True)
    words = [("k i t ->", " K IH T"), ("t w o ->", " T UW"), ("t o o ->", " T UW")]
    rows = "".join(json.dumps({"prompt": prompt, "completion": said}) + "\n" for prompt, said in words)
    for split in ("train", "validation", "test"):
        (dataset / f"{split}.jsonl").write_text(rows)
    command = [sys.executable, str(EXAMPLES / "pairs.py"), str(tmp_path / "sounds")]
    subprocess.run(command, env={**os.environ, "UMBEL_HOME": str(tmp_path / "home")}, check=True, timeout=60)
    made = {path.stem: path.read_text().splitlines() for path in (tmp_path / "sounds").iterdir()}
    assert {split: len(lines) for split, lines in made.items()} == {"train": 3, "validation": 1, "test": 1}
    assert json.loads(made["test"][0]) == {"text": "k i t", "positive": "K IH T"}


def test_a_spreadsheet_of_the_demos_data_can_be_checked_by_its_own_columns(tmp_path):
    dataset = tmp_path / "home" / "datasets" / "tweets-sentiment"
    dataset.mkdir(parents=True)
    rows = [{"text": f'late, "again" {i}', "label": ("negative", "positive")[i % 2]} for i in range(300)]
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"env": {**os.environ, "UMBEL_HOME": str(tmp_path / "home")}, "check": True, "timeout": 120}
    subprocess.run([sys.executable, str(EXAMPLES / "spreadsheet.py"), "tweets.csv"], cwd=tmp_path, **told)
    words = ["data", "check", "tweets.csv", "--text-column", "tweet", "--label-column", "mood", "--json"]
    command = [sys.executable, "-m", "umbel.cli", *words]
    found = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, **told).stdout)
    assert (found["rows"], found["labels"]) == ({"train": 200}, {"negative": 100, "positive": 100})


@pytest.fixture
def in_place_of_training(tmp_path, monkeypatch):
    """``umbel`` itself on the demo's path, but a shell's words for what ``umbel train`` does."""

    def put(words):
        script = tmp_path / "bin" / "umbel"
        script.parent.mkdir()
        real = f'exec {shlex.quote(sys.executable)} -m umbel.cli "$@"'
        script.write_text(f'#!/bin/sh\n[ "$1" = train ] || {real}\n{words}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    for name in ("UMBEL_DATABASE_URL", "UMBEL_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    return put


def test_the_demo_goes_on_with_the_training_that_was_interrupted_and_with_no_other(in_place_of_training, capfd):
    in_place_of_training('echo "adapter sentiment:1"')
    with Registry.open() as registry:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        owner = f"{os.uname().nodename}:{dead.pid}"
        left = registry.runs.start(name="sentiment", params={"rank": 4, "limit": 1000}, seed=0, owner=owner)
    train = runpy.run_path(str(EXAMPLES / "demo.py"))["train"]
    assert train("sentiment.toml", "--rank", "4", "--limit", "1000") == "sentiment:1"
    assert f"$ umbel train --resume {left}\n" in capfd.readouterr().out
    assert train("sentiment.toml") == "sentiment:1"
    assert "--resume" not in capfd.readouterr().out


def test_ctrl_c_ends_the_demo_with_its_commands_own_words(in_place_of_training):
    in_place_of_training('trap "echo saved; exit 130" INT; echo training; while :; do sleep 0.05; done')
    demo = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any(line == "training\n" for line in demo.stdout)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, out, err) == (130, "saved\n", "")


def test_every_example_is_run_here_or_by_make_demo():
    run = {"ask.py", "ask_many.py", "demo.py", "openai_sdk.py", "pairs.py", "spreadsheet.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == run
