"""What a training says that it needs is what its process is then seen to hold."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from umbel.backbone.tiny import tiny_backbone
from umbel.core.anew import compact

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells there what a process held at most")

SCRIPT = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from umbel.backbone.loading import load_backbone
from umbel.core.settings import Settings
from umbel.training import Task, fit, tune
from umbel.training.observer import Observer

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

class Ears(Observer):
    def planned(self, plan):
        self.plan, self.before = plan, held("VmRSS")

folder, home, works = json.loads(sys.argv[1])
for name, (given, checkpointing, together, dtype) in works.items():
    if os.fork():  # a process of its own, that has imported everything
        os.wait()
        continue
    ears, task = Ears(), Task(**given)
    more = {"settings": Settings.load(Path(home)), "observer": ears, "checkpointing": checkpointing}
    backbone = load_backbone(Path(folder), dtype=dtype)
    tasks = [replace(task, name=f"it-{i}", seed=i) for i in range(together)]
    tune(backbone, task, **more) if task.selection.tunes else fit(backbone, tasks, **more)
    print(json.dumps([name, ears.plan.memory, held("VmHWM"), ears.before]), flush=True)
    os._exit(0)
"""
WORK = {
    "attention of long rows": (900, {"task": "classify", "batch_size": 2}, "none"),
    "the same, recomputed": (900, {"task": "classify", "batch_size": 2}, "full"),
    "logits of answers": (100, {"task": "generate", "batch_size": 16}, "none"),
    "prefixes before ragged rows": (400, {"task": "classify", "method": "prefix", "batch_size": 5}, "none"),
    "adapters together": (20, {"task": "classify", "batch_size": 2, "options": {"rank": 48}}, "none", 24),
    "logits in bf16": (100, {"task": "generate", "batch_size": 16}, "none", 1, "bf16"),
    "all of the backbone": (100, {"task": "generate", "train": "all", "batch_size": 8}, "none"),
}
"""Characters of a row, the task, checkpointing, how many such adapters train together, and in what if not in fp32."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By work: bytes planned, held at most, and held before the first step."""
    scratch = tmp_path_factory.mktemp("peak")
    # many heads and a large vocabulary on a narrow model: many bytes for little work
    shape = {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 30_000, "max_position_embeddings": 1024}
    folder = tiny_backbone(scratch / "wide", hidden_size=64, **shape)
    works = {}
    for number, (name, (length, given, checkpointing, *more)) in enumerate(WORK.items()):
        together, dtype = [*more, *(1, "fp32")[len(more) :]]
        data = scratch / f"{number}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(length, given["task"])))
        common = {"name": "it", "data": str(data), "steps": 4, "max_length": 1000, "lr": 1e-4}
        works[name] = ({**common, **given}, checkpointing, together, dtype)
    order = json.dumps([str(folder), str(scratch / "home"), works])
    environ = compact(os.environ) or dict(os.environ)  # as umbel train runs
    command = [sys.executable, "-c", SCRIPT, order]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
    return {name: numbers for name, *numbers in map(json.loads, ran.stdout.splitlines())}


def rows(length, task):
    for i in range(40):
        size = length - length // 8 * (i % 3)
        start = f"{i:03}"
        if task == "generate":
            yield {"prompt": start + "a" * (size // 2), "completion": "b" * (size // 2)}
        else:
            yield {"text": start + "x" * size, "label": "ab"[i % 2]}


@pytest.mark.parametrize("work", WORK)
def test_the_estimate_is_what_is_then_held(said, work):
    planned, held, before = said[work]
    assert abs(planned - held) < 0.15 * held, (planned - before, held - before)


def test_recomputed_activations_are_not_counted(said):
    kept, recomputed = said["attention of long rows"], said["the same, recomputed"]
    assert recomputed[1] < kept[1] - 30e6
    assert recomputed[0] < kept[0] - 30e6


def test_adapters_that_train_together_are_counted_each(tasks, backbone, settings, monkeypatch):
    from umbel.training.estimate import peak
    from umbel.training.passes import Packing
    from umbel.training.prepared import prepare
    from umbel.training.trainee import trainee_of
    from umbel.training.window import Machine

    alike = [replace(tasks["mood"], name=f"mood-{i}", seed=i) for i in range(5)]
    trainees = [trainee_of(prepare(each, backbone, settings), backbone) for each in [*alike, tasks["speech"]]]
    works, really = [], peak.fake_step
    monkeypatch.setattr(peak, "fake_step", lambda work, **more: works.append(work) or really(work, **more))
    peak.peak_bytes(trainees, Machine(backbone, Packing()))
    assert [work.adapters for work in works if work.output_head == alike[0].output_head] == [5]
    five = next(work for work in works if work.adapters == 5)
    one, all_of_them = really(replace(five, adapters=1)), really(five)
    assert all_of_them.trained == 5 * one.trained
    assert all_of_them.peak >= one.peak + 4 * one.trained  # each has gradients of its own
