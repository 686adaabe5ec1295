"""Tiny backbones, tiny data, and a way to train on them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from umbel.backbone.backbone import Backbone
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.settings import Settings
from umbel.training import Task, TrainedAdapter, fit
from umbel.training.taskfile import task_of

SPEECH = [
    {"prompt": f"{a}{b} ->", "completion": f" {b}{a}{'!' * (i % 3)}"} for i, a in enumerate("abcdef") for b in "uvwxyz"
]
MOODS = [
    {"text": f"{'good' if i % 2 else 'bad'} {'very ' * (i % 4)}thing {i}", "label": "glad" if i % 2 else "sad"}
    for i in range(40)
]
TOPICS = [
    {
        "text": f"{'red ' * (i % 2)}{'round ' * (i % 3 == 0)}thing {i}",
        "label": ["red"] * (i % 2) + ["round"] * (i % 3 == 0),
    }
    for i in range(30)
]
NAMES = [
    {
        "tokens": ["see", "Ann", "run"][i % 3 :] + ["now"] * (i % 2),
        "tags": ["O", "N", "O"][i % 3 :] + ["O"] * (i % 2),
    }
    for i in range(30)
]
ALIKE = [
    {"text": f"{'so ' * (i % 3)}{a}{b}", "positive": f"{b}{a}!{'?' * (i % 2)}"}
    | ({"negative": a} if b in "uv" else {"weight": 2})
    for i, a in enumerate("abcdefgh")
    for b in "uvwx"
]
HEIGHTS = [{"text": "up " * (i % 5) + f"end {i}", "value": (i % 5) / 2} for i in range(30)]

Write = Callable[[str, Sequence[Mapping[str, Any]]], str]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def wide(tiny) -> Backbone:
    """In float64, where identities hold to the last digits."""
    return load_backbone(tiny, dtype="fp64")


@pytest.fixture(scope="session")
def backbone(tiny) -> Backbone:
    return load_backbone(tiny)


@pytest.fixture
def write(tmp_path) -> Write:
    """write(name, rows): a JSONL file; returns its path."""

    def run(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return run


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings.load(tmp_path / "home")


@pytest.fixture
def tasks(write) -> dict[str, Task]:
    """Six tasks of different methods, heads, batch sizes and lengths, all with dropout where their method has it."""
    return {
        "speech": make(write, SPEECH, name="speech", task="generate", rank=4, dropout=0.2, batch_size=6, micro_batch=2),
        "mood": make(write, MOODS, name="mood", task="classify", rank=2, dropout=0.1, head_depth=1, head_dropout=0.2),
        "topic": make(write, TOPICS, name="topic", task="classify", method="ia3", batch_size=5, pooling="mean"),
        "names": make(
            write, NAMES, name="names", task="tag", method="prompt", length=2, batch_size=7, head_dropout=0.1
        ),
        "alike": make(write, ALIKE, name="alike", task="embed", rank=2, dropout=0.1, batch_size=6, temperature=0.3),
        "height": make(write, HEIGHTS, name="height", task="regress", method="llama_adapter", length=4, seed=3),
    }


def make(write: Write, rows: Sequence[Mapping[str, Any]], **options: Any) -> Task:
    defaults = {"steps": 4, "lr": 0.02, "validation_fraction": 0.2}
    return task_of({**defaults, "data": write(options["name"], rows), **options})


@pytest.fixture
def task(write) -> Callable[..., Task]:
    """task(rows, name=..., task=..., ...): a task over a file with these rows."""
    return lambda rows, **options: make(write, rows, **{"name": "task", **options})


@pytest.fixture
def train(wide, settings) -> Callable[..., list[TrainedAdapter]]:
    """``fit`` in float64."""

    def run(*tasks: Task, **more: Any) -> list[TrainedAdapter]:
        return fit(wide, tasks, **{"settings": settings, **more})

    return run


@pytest.fixture(scope="session")
def furthest() -> Callable[[TrainedAdapter, TrainedAdapter], float]:
    """Largest difference between two trained adapters, over all tensors."""

    def run(one: TrainedAdapter, other: TrainedAdapter) -> float:
        assert one.adapter is not None
        assert other.adapter is not None
        mine, theirs = one.adapter.tensors, other.adapter.tensors
        assert mine.keys() == theirs.keys()
        return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)

    return run
