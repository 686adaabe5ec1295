"""Adapters trained by several processes are what one process trains: float64 to 1e-10, whatever the strategy."""

import json

import pytest

from umbel.backbone.loading import load_backbone
from umbel.core.settings import Settings
from umbel.training import Task, fit

EXACT = 1e-10
METHODS = [
    ("prefix", {"length": 3}),
    ("prefix", {"length": 3, "projection": True}),
    ("prompt", {"length": 3, "init_text": "spell it"}),
    ("p_tuning", {"length": 3}),
    ("bottleneck", {}),
    ("ia3", {}),
    ("llama_adapter", {"length": 3, "layers": 1}),
    ("lora", {"rank": 2, "dora": True, "dropout": 0.1}),
    ("lora", {"rank": 2, "targets": ("q_proj", "lm_head"), "dropout": 0.1}),
    ("lora", {"rank": 2, "targets": ("q_proj",), "token_rows": (97, 98, 32), "bias": "all", "lora_bias": True}),
    ("lora", {"rank": 2, "targets": ("q_proj", "embed_tokens"), "full_copies": ("lm_head",)}),
]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A task of each method; row counts that no number of processes divides, and fewer rows than processes."""
    data = tmp_path_factory.mktemp("data") / "speech.jsonl"
    rows = [
        {"prompt": f"{a}{b} ->", "completion": f" {b}{a}{'!' * (i % 3)}"} for i, a in enumerate("abc") for b in "uvwxy"
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moods = data.with_name("mood.jsonl")
    moods.write_text(
        "".join(json.dumps({"text": "so " * (i % 4) + "it is", "label": "ab"[i % 2]}) + "\n" for i in range(30))
    )
    common = {"steps": 3, "lr": 0.02, "validation_fraction": 0.2}
    spoken = [
        Task(
            name=f"m{i}",
            data=str(data),
            task="generate",
            method=method,
            options=options,
            batch_size=3 + i % 4,
            **common,
        )
        for i, (method, options) in enumerate(METHODS)
    ]
    mood = Task(name="mood", data=str(moods), task="classify", head_depth=1, head_dropout=0.2, batch_size=7, **common)
    pairs = data.with_name("pairs.jsonl")
    pairs.write_text(
        "".join(json.dumps({"text": f"{a}{b}", "positive": f"{b}{a}!"}) + "\n" for a in "abcde" for b in "uvwxy")
    )
    alike = Task(name="alike", data=str(pairs), task="embed", method="ia3", batch_size=5, **common)
    return [*spoken, mood, alike]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Settings.load(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def alone(crowd, wide, home):
    return fit(wide, crowd, settings=home)


@pytest.mark.parametrize(
    ("size", "strategy", "more"),
    [
        (2, "ddp", {}),
        (2, "fsdp", {}),
        (2, "fsdp", {"checkpointing": "full"}),
        (2, "fsdp-grad-op", {"wrap": "size=20000"}),
        (2, "fsdp", {"wrap": "modules=layers.1"}),
        (4, "hsdp=2", {}),
    ],
)
def test_any_strategy_trains_every_method_as_one_process_does(launch, tiny, home, crowd, alone, size, strategy, more):
    ranks = launch(size, "train", folder=str(tiny), home=str(home.home), tasks=crowd, strategy=strategy, **more)
    for found in ranks:
        same(alone, found)


def test_on_quantised_linears_two_processes_train_every_method_as_one_does(launch, tiny, home, crowd):
    alone = fit(load_backbone(tiny, dtype="fp64", quantise="int4"), crowd, settings=home)
    given = {"folder": str(tiny), "home": str(home.home), "tasks": crowd}
    for found in launch(2, "train", strategy="ddp", quantise="int4", **given):
        same(alone, found)


def same(alone, found):
    for one, other in zip(alone, found, strict=True):
        assert other["error"] is None
        mine, theirs = one.adapter.tensors, other["tensors"]
        assert mine.keys() == theirs.keys()
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < EXACT, one.task.name
        assert other["losses"] == pytest.approx(one.losses, abs=EXACT)
        seen = [(each.step, each.loss, each.accuracy) for each in one.history]
        for before, now in zip(seen, other["history"], strict=True):
            assert now == pytest.approx(before, abs=EXACT)
