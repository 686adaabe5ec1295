"""The real backbone, all of it trained in two processes, stopped, finished in one, exported, read by transformers and
served: the founding document's main promise, from the command line alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.core.folders import folders_in
from umbel.core.settings import Settings
from umbel.registry.registry import Registry

WORDS = [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}"} for a in "abcdefgh" for b in "stuvwxyz"]
TRAIN = ["--task", "generate", "--train", "all", "--nproc", "2", "--strategy", "fsdp", "--steps", "10",
         "--batch-size", "4", "--validation-limit", "4", "--test-limit", "4", "--save-every", "2"]  # fmt: skip


@pytest.fixture
def home(tmp_path) -> Path:
    """A home with the real backbone and nothing else."""
    installed = Path(os.environ["UMBEL_HOME"]) / "backbones" / "smollm2-135m-instruct"
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    shutil.copytree(installed, made / "backbones" / installed.name)
    return made


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "umbel.cli", *words]


def environ(home: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "UMBEL_HOME": str(home)}


def umbel(home: Path, *words: str) -> str:
    done = subprocess.run(command(*words), env=environ(home), capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak
@pytest.mark.smol
def test_smollm2_is_trained_whole_in_two_processes_finished_in_one_exported_and_served(home, tmp_path):
    data = tmp_path / "flip.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in WORDS))
    begun = command("train", "--name", "flip", "--data", str(data), *TRAIN)
    launcher = subprocess.Popen(begun, env=environ(home), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not (saved := [path for run in folders_in(home / "runs") for path in folders_in(run / "checkpoints")]):
            assert launcher.poll() is None, launcher.stderr.read()
            time.sleep(0.2)
        launcher.send_signal(signal.SIGTERM)
        assert "go on with: umbel train --resume" in launcher.communicate(timeout=120)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert list((saved[0] / "shards").iterdir())
    umbel(home, "train", "--resume", saved[0].parent.parent.name)
    with Registry.open(Settings.load(home)) as registry:
        assert registry.runs.get(saved[0].parent.parent.name).status == "succeeded"
        made = next(one.name for one in registry.backbones.list() if one.name.startswith("flip."))
    out = tmp_path / "out"
    umbel(home, "backbones", "export", "flip", str(out))
    assert far_apart(home / "backbones" / made, out) < 2e-4
    answered = json.loads(umbel(home, "run", "flip", "as ->", "--json"))
    assert answered["model"] == "flip:1"


@torch.no_grad()
def far_apart(folder: Path, exported: Path) -> float:
    """The largest difference of logits, of which the largest are about 30."""
    ids = torch.randint(0, 49152, (1, 24), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(str(exported), dtype=torch.float32)(ids).logits[0]
    step = whole_step(rows=1, tokens=24, want=torch.arange(24))
    ours = load_backbone(folder, dtype="float32").decoder(ids, step).logits
    first = AutoModelForCausalLM.from_pretrained(
        str(Path(os.environ["UMBEL_HOME"]) / "backbones" / "smollm2-135m-instruct"), dtype=torch.float32
    )
    assert (first(ids).logits[0] - theirs).abs().max() > 0.1  # it was trained
    return float((ours - theirs).abs().max())
