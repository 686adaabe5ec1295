"""A backbone of six layers in float64, and a task of each output head that trains a part of it."""

from collections.abc import Callable

import pytest

from umbel.backbone.backbone import Backbone
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.training import Task, Tuned, tune

ROWS = {
    "generate": [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}!"} for a in "abcdef" for b in "uvwxyz"],
    "classify": [
        {"text": f"{'good' if i % 2 else 'bad'} {'very ' * (i % 4)}thing {i}", "label": "glad" if i % 2 else "sad"}
        for i in range(40)
    ],
    "regress": [{"text": "up " * (i % 5) + "end", "value": (i % 5) / 2} for i in range(30)],
    "tag": [
        {
            "tokens": ["see", "Ann", "run"][i % 3 :] + ["now"] * (i % 2),
            "tags": ["O", "N", "O"][i % 3 :] + ["O"] * (i % 2),
        }
        for i in range(30)
    ],
}


@pytest.fixture(scope="session")
def six(tmp_path_factory) -> Backbone:
    """In float64, where identities hold to the last digits."""
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("six") / "six", num_hidden_layers=6), dtype="fp64")


@pytest.fixture
def own_task(task) -> Callable[..., Task]:
    """own_task(head, train=..., ...): a task of that output head."""

    def make(head: str, **options: object) -> Task:
        return task(ROWS[head], **{"name": head, "task": head, "lr": 0.003, "train": "layers=last:2", **options})

    return make


@pytest.fixture
def tuned(six, own_task, settings) -> Callable[..., Tuned]:
    """tuned(head, train=..., ...): trained in float64."""

    def run(head: str, **options: object) -> Tuned:
        more = {key: options.pop(key) for key in ("packing", "checkpointing", "folder", "stop") if key in options}
        return tune(six, own_task(head, **options), settings=settings, **more)

    return run
