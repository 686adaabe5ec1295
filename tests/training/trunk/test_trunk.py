"""Training on kept states of the frozen layers learns what training through them learns, the same bits every time."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import Interrupted
from umbel.training import fit, resume
from umbel.training.data.encode import Example
from umbel.training.observer import Observer
from umbel.training.prepared import prepare
from umbel.training.trainee import trainee_of
from umbel.training.trunk import trunk as trunk_module
from umbel.training.trunk.choice import choose_cut, open_trunk
from umbel.training.trunk.rowstore import RowStore
from umbel.training.trunk.trunk import Cut, Trunk

EXACT = 1e-12
TOP = {
    "last": ("mood", "none", {}),
    "mean": ("topic", "none", {}),
    "words": ("names", "none", {}),
    "value": ("height", "none", {}),
    "pairs": ("alike", "none", {}),
    "lora of pairs": ("alike", "lora", {"rank": 2, "layers": (3,), "dropout": 0.1}),
    "lora": ("mood", "lora", {"rank": 2, "layers": (3,), "dropout": 0.1}),
    "lora that speaks": ("speech", "lora", {"rank": 2, "layers": (2, 3), "dropout": 0.1}),
    "lora on lm_head": ("speech", "lora", {"rank": 2, "targets": ("lm_head",), "dropout": 0.1}),
    "llama adapter": ("height", "llama_adapter", {"length": 4, "layers": 2}),
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("deep") / "deep", num_hidden_layers=4)


@pytest.fixture(scope="module")
def wide(deep):
    return load_backbone(deep, dtype="fp64")


@pytest.fixture(scope="module")
def single(deep):
    return load_backbone(deep)


@pytest.fixture
def top(tasks):
    """Tasks whose adapters act on the top layers or on none, two epochs and more."""
    found = {}
    for name, (task, method, options) in TOP.items():
        size = 8 if name == "pairs" else None
        more = {"method": method, "options": options, "steps": 12, "embedding_size": size}
        found[name] = replace(tasks[task], name=name.replace(" ", "-"), **more)
    return found


class Cuts(Observer):
    """Where each trainee's kept states enter."""

    def __init__(self):
        self.found = {}

    def stepped(self, trainee, done):
        self.found[trainee.task.name] = trainee.cut


@pytest.mark.parametrize("name", TOP)
def test_kept_states_teach_what_the_whole_backbone_teaches(top, wide, settings, furthest, name):
    cuts = Cuts()
    kept = fit(wide, [top[name]], settings=settings, observer=cuts)[0]
    whole = fit(wide, [replace(top[name], trunk_cache="off")], settings=settings)[0]
    assert cuts.found[kept.task.name] is not None
    assert furthest(kept, whole) < EXACT
    assert kept.losses == pytest.approx(whole.losses, abs=EXACT)
    assert [v.loss for v in kept.history] == pytest.approx([v.loss for v in whole.history], abs=EXACT)
    assert kept.losses[-1] != kept.losses[0]


def test_they_do_so_in_company_of_adapters_that_need_every_layer(top, tasks, wide, settings, furthest):
    mixed = [tasks["speech"], *top.values(), replace(tasks["mood"], name="all")]
    together = fit(wide, mixed, settings=settings)
    for found in together:
        alone = fit(wide, [replace(found.task, trunk_cache="off")], settings=settings)[0]
        assert furthest(found, alone) < 1e-10, found.task.name


def test_single_precision_losses_agree_to_1e_5(top, single, settings):
    for task in top.values():
        kept = fit(single, [task], settings=settings)[0]
        whole = fit(single, [replace(task, trunk_cache="off")], settings=settings)[0]
        assert kept.losses == pytest.approx(whole.losses, abs=1e-5), task.name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_found_or_computed_the_bits_are_the_same(top, deep, settings, dtype):
    backbone = load_backbone(deep, dtype=dtype)
    for task in top.values():
        cold = fit(backbone, [task], settings=settings)[0]
        warm = fit(backbone, [task], settings=settings)[0]
        assert cold.losses == warm.losses, task.name
        assert all(warm.adapter.tensors[name].equal(tensor) for name, tensor in cold.adapter.tensors.items())


def test_a_resumed_run_whose_cache_was_deleted_ends_in_the_same_bytes(top, single, settings, tmp_path):
    class Stop:
        left = 7

        def __call__(self):
            self.left -= 1
            return "Ctrl-C" if self.left < 0 else None

    mates = list(top.values())
    never = fit(single, mates, settings=settings)
    with pytest.raises(Interrupted):
        fit(single, mates, settings=settings, folder=tmp_path / "run", stop=Stop())
    shutil.rmtree(settings.cache)
    for one, other in zip(never, resume(single, tmp_path / "run", settings=settings), strict=True):
        assert one.losses == other.losses
        assert all(other.adapter.tensors[name].equal(tensor) for name, tensor in one.adapter.tensors.items())


def test_a_resumed_run_keeps_what_it_decided_whatever_the_settings_are_now(top, single, settings, tmp_path):
    cuts = Cuts()
    with pytest.raises(Interrupted):
        fit(single, [top["last"]], settings=settings, folder=tmp_path / "run", stop=iter([None, "stop"]).__next__)
    resume(single, tmp_path / "run", settings=replace(settings, trunk_cache_bytes=0), observer=cuts)
    assert cuts.found["last"] == Cut(4, "last")


def example(ids, words=()):
    import numpy as np

    return Example(0, np.array(ids, dtype=np.int32), None, (), words)


ROWS = [example([(7 * i + 3 * j) % 250 for j in range(3 + i % 4)], words=(0, 2)) for i in range(60)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cut", [Cut(2, "layer"), Cut(4, "last"), Cut(4, "mean"), Cut(4, "tokens")])
def test_a_row_has_the_same_states_in_whatever_company_and_place(deep, settings, dtype, cut):
    backbone = load_backbone(deep, dtype=dtype)
    together = open_trunk(backbone, settings).states(cut, ROWS)
    shutil.rmtree(settings.cache)
    backwards = open_trunk(backbone, settings).states(cut, ROWS[::-1])[::-1]
    for row, one, other in zip(ROWS, together, backwards, strict=True):
        shutil.rmtree(settings.cache)
        assert open_trunk(backbone, settings).states(cut, [row])[0].equal(one)
        assert one.equal(other)


def test_another_adapter_on_the_same_rows_computes_nothing(top, single, settings, monkeypatch):
    computed = []
    compute = trunk_module.Trunk._compute

    def counting(self, cut, missing):
        computed.extend(missing)
        return compute(self, cut, missing)

    monkeypatch.setattr(trunk_module.Trunk, "_compute", counting)
    fit(single, [top["last"]], settings=settings)
    assert len(computed) == len(set(computed)) > 30  # every row once, over all epochs and validations
    fit(single, [replace(top["last"], name="other", head_depth=1, lr=0.1, seed=5)], settings=settings)
    assert len(computed) == len(set(computed))


def test_states_are_not_mixed_up(deep, tmp_path, single, settings):
    other = load_backbone(tiny_backbone(tmp_path / "other", seed=7, num_hidden_layers=4))
    half = load_backbone(deep, dtype="bf16")
    cuts = [Cut(1, "layer"), Cut(2, "layer"), Cut(4, "layer"), Cut(4, "last"), Cut(4, "mean"), Cut(4, "tokens")]
    keys = {open_trunk(each, settings)._key(cut, row) for each in (single, other, half) for cut in cuts for row in ROWS}
    rows = len({tuple(row.ids.tolist()) for row in ROWS})
    assert len(keys) == 3 * len(cuts) * rows


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"trunk_cache": "off"}, "it was asked for"),
        ({"steps": 2}, "no row comes twice"),
        ({"method": "lora", "options": {"rank": 2}}, "the lowest layer is adapted"),
        ({"method": "prefix", "options": {"length": 2}}, "virtual keys reach every layer"),
        ({"method": "prompt", "options": {"length": 2}}, "virtual tokens enter at the bottom"),
        ({"method": "ia3", "options": {}}, "every layer is scaled"),
        ({"method": "bottleneck", "options": {}}, "every layer has one"),
    ],
)
def test_nothing_is_kept_where(top, single, settings, change, why):
    task = replace(top["last"], **change)
    trainee = trainee_of(prepare(task, single, settings), single)
    assert choose_cut(trainee, single, settings) is None, why


def test_nothing_is_kept_that_is_larger_than_the_limit(top, single, settings):
    trainee = trainee_of(prepare(top["lora"], single, settings), single)
    assert choose_cut(trainee, single, settings) == Cut(3, "layer")
    assert choose_cut(trainee, single, replace(settings, trunk_cache_bytes=10_000)) is None


def test_gradients_stop_at_the_kept_states_and_reach_the_lowest_adapted_layer(top, wide, settings):
    from umbel.training.passes import Packing
    from umbel.training.window import Machine, _accumulate

    trainee = trainee_of(prepare(top["lora that speaks"], wide, settings), wide)
    trainee.cut = choose_cut(trainee, wide, settings)
    for tensor in trainee.trained.values():
        tensor.data.add_(0.05)
    _accumulate(Machine(wide, Packing(), trunk=open_trunk(wide, settings)), [trainee])
    assert all(float(tensor.grad.abs().sum()) > 0 for tensor in trainee.trained.values())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_row_has_the_same_states_in_every_place_of_a_group(deep, tmp_path, dtype):
    """On two threads MKL's fp32 products of odd lengths depend on where a row begins in memory."""
    backbone, threads = load_backbone(deep, dtype=dtype), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for length in range(2, 34):
            texts = [np.random.default_rng(i).integers(3, 200, length).astype(np.int32) for i in range(12)]
            examples = [Example(i, ids, None, (0.0,)) for i, ids in enumerate(texts)]
            found = []
            for order in (examples, examples[::-1], examples[5:6]):
                trunk = Trunk(backbone, RowStore(tmp_path / "none", 0, in_memory=0))
                states = dict(zip([each.index for each in order], trunk.states(Cut(3, "layer"), order), strict=True))
                found.append(states[5])
            assert found[0].shape == (length, backbone.shape.hidden)
            assert all(torch.equal(found[0], other) for other in found[1:]), length
    finally:
        torch.set_num_threads(threads)
