"""``umbel train --nproc``: one command line in several processes; a process that dies comes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from umbel.core.folders import folders_in
from umbel.core.settings import Settings
from umbel.registry.registry import Registry

WORDS = [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}"} for a in "abcdefgh" for b in "stuvwxyz"]


@pytest.fixture
def task(tmp_path) -> Path:
    (tmp_path / "flip.jsonl").write_text("".join(json.dumps(row) + "\n" for row in WORDS))
    lines = ['name = "flip"', 'data = "flip.jsonl"', 'task = "generate"', "steps = 60", "lr = 0.01", "eval_every = 20"]
    path = tmp_path / "flip.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def start(task: Path, *words: str, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "umbel.cli", "train", str(task), "--nproc", "2", "--save-every", "0", *words]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "UMBEL_HOME": str(home)}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    return [each for each in psutil.Process(launcher.pid).children() if "umbel.cli" in " ".join(each.cmdline())]


def test_wrong_data_are_told_once_however_many_processes(stocked, task):
    (task.parent / "flip.jsonl").write_text('{"prompt": "a ->", "completion": " b"}\n{"prompt": 1}\n')
    launcher = start(task, home=stocked)
    _out, err = launcher.communicate(timeout=100)
    assert launcher.returncode == 2
    assert err.count("error:") == 1
    assert "line 2" in err


WHOLE = ("--train", "all", "--steps", "40")


@pytest.mark.soak
@pytest.mark.parametrize("words", [("--rank", "4", "--dropout", "0.1"), WHOLE], ids=["adapter", "whole backbone"])
def test_a_process_that_is_killed_comes_back_and_the_version_has_the_bytes_of_an_undisturbed_run(
    registry, filled, stocked, task, words, tmp_path
):
    """Each in a home of its own: one home registers the same backbone once."""
    quiet = shutil.copytree(filled, tmp_path / "quiet")
    start(task, "--strategy", "fsdp", *words, home=quiet).communicate(timeout=250)
    with Registry.open(Settings.load(quiet)) as opened:
        undisturbed = opened.versions.get("flip:1")
        backbone = opened.fetch(undisturbed.digest).manifest.backbone
    launcher = start(task, "--strategy", "fsdp", "--max-restarts", "1", *words, home=stocked)
    runs = stocked / "runs"
    seen = {path.name for path in folders_in(runs)}
    while not (
        begun := [path for path in folders_in(runs) if path.name not in seen and folders_in(path / "checkpoints")]
    ):
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.05)
    os.kill(workers(launcher)[-1].pid, signal.SIGKILL)
    _out, err = launcher.communicate(timeout=250)
    assert launcher.returncode == 0, err
    assert len(begun) == 1
    again = registry.versions.get("flip:1")
    assert again.weights_sha256 == undisturbed.weights_sha256
    assert registry.fetch(again.digest).manifest.backbone == backbone  # the bytes of a trained one, too
    assert again.run == begun[0].name
    assert registry.runs.get(again.run).status == "succeeded"
    assert not [path for path in (begun[0] / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.soak
def test_an_error_is_told_once_and_keeps_its_exit_code(stocked, task):
    launcher = start(task, "--strategy", "hsdp=3", home=stocked)
    _out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert err.count("error:") == 1
    assert "N must divide 2" in err
