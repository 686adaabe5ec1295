"""Training on a processor that does not multiply bf16: none of its products is of bf16, and what comes out is alike."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from umbel.adapters import wide_products
from umbel.backbone.loading import load_backbone
from umbel.training import Task, fit, tune
from umbel.training.estimate import peak
from umbel.training.estimate.step import fake_step
from umbel.training.estimate.work import work_of
from umbel.training.observer import Observer

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mv}


class Products(TorchDispatchMode):
    """Counts those that are computed, by the dtype of what is multiplied."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in PRODUCTS:
            self.found[args[-1].dtype] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def lesser(monkeypatch):
    monkeypatch.setattr(wide_products, "_multiplies", lambda: False)


@pytest.fixture(scope="module")
def backbone(tiny):
    return load_backbone(tiny, dtype="bf16")


@pytest.fixture
def train(backbone, settings):
    def run(*tasks: Task, **more):
        """(trained, the products that were computed)."""
        with Products() as seen:
            trained = fit(backbone, tasks, settings=settings, **more)
        return trained, seen.found

    return run


@pytest.mark.usefixtures("lesser")
def test_no_product_of_a_training_is_of_bf16(tasks, train):
    _, found = train(*tasks.values())
    assert found[torch.bfloat16] == 0
    assert found[torch.float32] > 100


@pytest.mark.usefixtures("lesser")
def test_nor_is_one_where_the_backbone_trains(backbone, task, settings):
    asked = task([{"prompt": "a", "completion": "b"}] * 20, task="generate", train="all")
    with Products() as seen:
        tune(backbone, asked, settings=settings)
    assert seen.found[torch.bfloat16] == 0
    assert seen.found[torch.float32] > 100


@pytest.mark.usefixtures("lesser")
def test_nor_where_it_is_quantised(tiny, tasks, settings):
    backbone = load_backbone(tiny, dtype="bf16", quantise="int8")
    with Products() as seen:
        fit(backbone, [replace(tasks["speech"], quantise="int8")], settings=settings)
    assert seen.found[torch.bfloat16] == 0
    assert seen.found[torch.float32] > 100


def test_elsewhere_they_are(monkeypatch, tasks, train):
    monkeypatch.setattr(wide_products, "_multiplies", lambda: True)
    assert train(tasks["speech"])[1][torch.bfloat16] > 100


def test_losses_are_those_of_a_processor_that_multiplies_bf16(monkeypatch, tasks, train):
    losses = {}
    for multiplies in (False, True):
        monkeypatch.setattr(wide_products, "_multiplies", lambda multiplies=multiplies: multiplies)
        losses[multiplies] = [loss for one in train(*tasks.values())[0] for loss in one.losses]
    assert losses[False] == pytest.approx(losses[True], rel=0.02)


@pytest.mark.usefixtures("lesser")
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_recomputed_activations_give_the_same_weights(tasks, train, furthest, checkpointing):
    kept, again = train(tasks["speech"])[0], train(tasks["speech"], checkpointing=checkpointing)[0]
    assert furthest(kept[0], again[0]) == 0


def test_the_memory_of_the_copies_is_expected(monkeypatch, backbone):
    config = backbone.config
    peaks = []
    for multiplies in (True, False):
        monkeypatch.setattr(wide_products, "_multiplies", lambda multiplies=multiplies: multiplies)
        work = work_of(
            config, {"task": "generate", "method": "lora"}, dtype="bf16", rows=2, length=16, checkpointing="none"
        )
        peaks.append(fake_step(work).peak)
    largest = config.shape.vocab * config.shape.hidden
    assert peaks[1] - peaks[0] > 4 * largest / 2


class Ears(Observer):
    def planned(self, plan):
        self.memory = plan.memory


@pytest.mark.parametrize("multiplies", [False, True])
def test_onednn_keeps_nothing_for_products_that_it_does_not_take(monkeypatch, tasks, train, multiplies):
    monkeypatch.setattr(wide_products, "_multiplies", lambda: multiplies)
    monkeypatch.setattr(peak, "_KERNEL", 10**15)
    ears = Ears()
    train(tasks["speech"], observer=ears)
    assert (ears.memory > 10**14) == multiplies
