"""``umbel estimate`` against what the allocator gave: within 15 % for each strategy."""

import json

import pytest

from umbel.backbone.config import read_config
from umbel.backbone.tiny import tiny_backbone
from umbel.core.settings import Settings
from umbel.training import Task
from umbel.training.distributed.strategy import Strategy
from umbel.training.estimate.estimate import estimate
from umbel.training.estimate.work import work_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide enough that weights and activations outweigh what a training holds beside them."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32}
    return tiny_backbone(tmp_path_factory.mktemp("backbone") / "wide", **sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of 48 tokens, the answer a quarter of them."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"{i:036d}", "completion": "answer-is-x"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CASES = {
    1: [
        ("none", {"method": "lora"}, {}),
        ("none", {"method": "prefix"}, {"checkpointing": "full"}),
        ("none", {"train": "all"}, {}),
        ("none", {"train": "layers=last:1"}, {}),
        ("none", {"train": "all", "precision": "bf16-mixed"}, {"checkpointing": "full"}),
    ],
    2: [
        ("ddp", {"method": "lora"}, {}),
        ("ddp", {"train": "all"}, {}),
        ("fsdp", {"method": "lora"}, {}),
        ("fsdp", {"train": "all"}, {}),
        ("fsdp", {"train": "all"}, {"checkpointing": "full"}),
        ("fsdp-grad-op", {"train": "all"}, {}),
    ],
}


@pytest.mark.parametrize("size", CASES)
def test_the_estimate_is_within_15_percent_of_what_is_allocated(launch, folder, data, tmp_path, size):
    home = str(Settings.load(tmp_path).home)
    jobs = []
    for name, options, more in CASES[size]:
        task = Task(name="t", data=str(data), task="generate", batch_size=8, steps=9, eval_every=9, **options)
        jobs.append(("peak", {"folder": str(folder), "home": home, "task": task, "strategy": name, **more}))
    (measured, *_) = launch(size, "many", jobs=jobs)
    config = read_config(folder)
    for (name, options, more), found in zip(CASES[size], measured, strict=True):
        rows, checkpointing = found["rows"] // size, more.get("checkpointing", "none")
        work = work_of(
            config, {"task": "generate", **options},
            dtype="auto", rows=rows, length=found["length"], checkpointing=checkpointing,
        )  # fmt: skip
        told = estimate(work, Strategy.read(name, size)).peak
        assert told == pytest.approx(found["held"] + found["step"], rel=0.15), (name, options)
