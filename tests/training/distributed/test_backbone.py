"""A backbone's own tensors trained by several processes: what one process trains, each holding its part alone."""

import json

import pytest

from umbel.backbone.loading import checkpoint_views
from umbel.core.settings import Settings
from umbel.training import Task, tune

EXACT = 1e-10


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Settings.load(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    spoken = [
        {"prompt": f"{a}{b} ->", "completion": f" {b}{a}{'!' * (i % 3)}"} for i, a in enumerate("abc") for b in "uvwxy"
    ]
    moods = [{"text": "so " * (i % 4) + "it is", "label": "ab"[i % 2]} for i in range(30)]
    for name, found in (("generate", spoken), ("classify", moods)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


@pytest.fixture(scope="module")
def make(rows):
    def run(head: str, train: str, **options) -> Task:
        given = {"steps": 3, "lr": 0.003, "validation_fraction": 0.2, "batch_size": 7, "clip": 0.5, **options}
        return Task(name="own", data=str(rows / f"{head}.jsonl"), task=head, train=train, **given)

    return run


@pytest.fixture(scope="module")
def alone(make, wide, home):
    """What one process makes of a task; each only once."""
    known = {}

    def run(head: str, train: str, **options):
        key = (head, train, *sorted(options.items()))
        if key not in known:
            known[key] = tune(wide, make(head, train, **options), settings=home)
        return known[key]

    return run


CASES = {
    2: [
        ("ddp", "generate", "all", {"micro_batch": 2}, {}),
        ("fsdp", "generate", "all", {"micro_batch": 2}, {}),
        ("fsdp", "classify", "all", {}, {"checkpointing": "full"}),
        ("fsdp", "generate", "layers=last:1", {}, {"checkpointing": "selective"}),
        ("fsdp-grad-op", "classify", "layers=first:1", {"micro_batch": 2}, {}),
    ],
    4: [("hsdp=2", "generate", "all", {"micro_batch": 1}, {"wrap": "size=20000"})],
}


@pytest.mark.parametrize("size", CASES)
def test_any_strategy_trains_what_one_process_trains(launch, tiny, home, make, alone, size):
    """One process = ddp = fsdp = hsdp in float64: whole backbones and some layers, accumulated, clipped, recomputed."""
    jobs = [
        ("own", dict(folder=str(tiny), home=str(home.home), task=make(head, train, **options), strategy=name, **more))
        for name, head, train, options, more in CASES[size]
    ]
    ranks = launch(size, "many", jobs=jobs)
    for place, (name, head, train, options, _) in enumerate(CASES[size]):
        one, found = alone(head, train, **options), [rank[place] for rank in ranks]
        assert furthest(checkpoint_views(one.backbone.decoder), found[0]["backbone"]) < EXACT, (name, train)
        for rank in found:
            assert rank["losses"] == pytest.approx(one.trained.losses, abs=EXACT)
            assert furthest(one.trained.adapter.tensors, rank["head"]) < EXACT


def furthest(mine, theirs) -> float:
    assert mine.keys() == theirs.keys()
    return max((float((mine[name] - theirs[name]).abs().max()) for name in mine), default=0.0)


def test_in_single_precision_losses_agree_to_1e_5(launch, tiny, backbone, home, make):
    task = make("generate", "all")
    one = tune(backbone, task, settings=home)
    given = {"folder": str(tiny), "home": str(home.home), "task": task, "dtype": "fp32"}
    for rank in launch(2, "many", jobs=[("own", given | {"strategy": name}) for name in ("ddp", "fsdp")]):
        for found in rank:
            assert found["losses"] == pytest.approx(one.trained.losses, abs=1e-5)


def test_each_process_holds_its_part_alone_and_frozen_layers_hold_no_gradient(launch, tiny, backbone, home, make):
    """Parameters, gradients and optimizer are 1/N within 5 %, in full training and in partial."""
    whole = sum(parameter.numel() * 4 for parameter in backbone.decoder.parameters())
    layer = sum(parameter.numel() * 4 for parameter in backbone.decoder.layers[1].parameters())
    given = {"folder": str(tiny), "home": str(home.home)}
    jobs = [
        ("held", given | {"strategy": name, "task": make("generate", train)})
        for name, train in (("ddp", "all"), ("fsdp", "all"), ("fsdp", "layers=last:1"))
    ]
    for everything, half, part in launch(2, "many", jobs=jobs):
        for found, bytes_ in ((everything, whole), (half, whole / 2), (part, layer / 2)):
            assert found["parameters"] == pytest.approx(bytes_, rel=0.05)
            assert found["gradients"] == pytest.approx(bytes_, rel=0.05)
            assert found["optimizer"] == pytest.approx(2 * bytes_, rel=0.05)
            assert found["states"] == found["tuned"]
            assert found["frozen_gradients"] == 0
        assert part["frozen"] == pytest.approx((whole - layer) / 2, rel=0.05)


def test_the_steps_move_far_more_than_the_tolerance_and_clipping_is_on(wide, alone):
    one, unclipped = alone("generate", "all", micro_batch=2), alone("generate", "all", micro_batch=2, clip=0.0)
    before, after = checkpoint_views(wide.decoder), checkpoint_views(one.backbone.decoder)
    free = checkpoint_views(unclipped.backbone.decoder)
    name = "model.layers.0.mlp.down_proj.weight"
    assert float((before[name] - after[name]).abs().max()) > 1e-3
    assert float((free[name] - after[name]).abs().max()) > 1e-6
