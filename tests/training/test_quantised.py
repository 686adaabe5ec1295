"""Training on quantised linears: as on a plain backbone that holds their weights, and told as what it is."""

from dataclasses import replace

import pytest

from umbel.adapters import catalog
from umbel.backbone.config import read_config
from umbel.backbone.loading import load_backbone
from umbel.backbone.quantised import QUANTISED_SITES
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import ConfigError
from umbel.core.forms import FORMS
from umbel.training import fit, tune
from umbel.training.distributed.group import ALONE
from umbel.training.distributed.load import load_frozen
from umbel.training.distributed.strategy import Strategy
from umbel.training.estimate.estimate import estimate
from umbel.training.estimate.work import work_of
from umbel.training.fitting import frozen_digest, resume

SPEECH = [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}"} for a in "abcdef" for b in "uvwxyz"]
MOODS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "glad" if i % 2 else "sad"} for i in range(30)]
WAYS = {
    "lora": {"rank": 2, "targets": "q_proj,v_proj,down_proj"},
    "dora": {"method": "lora", "rank": 2, "dora": True},
    "ends": {"method": "lora", "rank": 2, "targets": "embed_tokens,q_proj,lm_head"},
    **{name: {"method": name} for name in catalog.methods() if name not in ("lora", "none")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_backbone(
        tmp_path_factory.mktemp("quantised") / "tiny", hidden_size=64, head_dim=16, num_hidden_layers=3
    )


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def on(folder, form, dtype="fp64"):
    return load_backbone(folder, dtype=dtype, quantise=form)


def plain_with(small):
    """A plain backbone that holds the dequantised weights."""
    plain = load_backbone(small.folder, dtype=str(small.dtype).removeprefix("torch."))
    for ours, theirs in zip(plain.decoder.layers, small.decoder.layers, strict=True):
        for site in QUANTISED_SITES:
            getattr(ours, site).weight.copy_(getattr(theirs, site).weight)
    return plain


@pytest.mark.parametrize("way", WAYS)
def test_every_method_learns_as_on_a_plain_backbone_with_the_same_weights(folder, task, settings, furthest, way):
    small = on(folder, "int8")
    asked = task(SPEECH, task="generate", steps=8, trunk_cache="off", **WAYS[way])
    (found,) = fit(small, [asked], settings=settings)
    (wanted,) = fit(plain_with(small), [asked], settings=settings)
    assert furthest(found, wanted) < 1e-10
    assert found.losses == pytest.approx(wanted.losses, abs=1e-10)
    assert min(found.losses[-2:]) < found.losses[0]


def test_every_form_trains_and_is_told(folder, task, settings, furthest, form):
    small = on(folder, form)
    before = frozen_digest(small)
    asked = task(SPEECH, task="generate", rank=4, steps=8, lr=0.01)
    (found,) = fit(small, [asked], settings=settings)
    (wanted,) = fit(plain_with(small), [asked], settings=settings)
    assert furthest(found, wanted) < 1e-10
    assert found.losses[-1] < found.losses[0]
    assert frozen_digest(small) == before == found.frozen
    assert found.adapter.contract.quantised == form
    assert found.adapter.backbone == load_backbone(folder).fingerprint
    assert wanted.adapter.contract.quantised is None
    assert "quantised" not in wanted.adapter.contract.model_dump()  # digests of what was there before stay


def test_recomputed_activations_change_nothing(folder, task, settings, furthest):
    asked = task(SPEECH, task="generate", rank=4)
    small = on(folder, "int4")
    (plain,) = fit(small, [asked], settings=settings)
    for checkpointing in ("full", "selective"):
        (again,) = fit(small, [asked], settings=settings, checkpointing=checkpointing)
        assert furthest(plain, again) < 1e-10


def test_one_changed_code_of_a_frozen_weight_is_noticed(folder, form):
    small = on(folder, form)
    before = frozen_digest(small)
    small.decoder.layers[2].down.codes[0, 0] += 1
    assert frozen_digest(small) != before


def test_what_frozen_layers_make_of_a_row_is_kept_for_each_form_apart(folder, task, settings, furthest):
    """A trunk that was kept on whole weights would give a quantised training other states."""
    asked = task(MOODS, task="classify", method="none", epochs=3, steps=None)
    fit(load_backbone(folder, dtype="fp64"), [asked], settings=settings)
    small = on(folder, "int4")
    (kept,) = fit(small, [asked], settings=settings)
    (fresh,) = fit(small, [task(MOODS, task="classify", method="none", epochs=3, steps=None, trunk_cache="off")],
                   settings=settings)  # fmt: skip
    assert kept.plan.kept_layers > 0
    assert furthest(kept, fresh) < 1e-10


def test_a_backbone_that_is_trained_itself_cannot_be_quantised(folder, task, settings):
    asked = task(MOODS, task="classify", train="layers=last:1")
    with pytest.raises(ConfigError, match="no gradient") as told:
        tune(on(folder, "int8", "fp32"), asked, settings=settings)
    assert told.value.code == "quantised_backbone"
    with pytest.raises(ConfigError, match="no gradient") as told:
        task(MOODS, task="classify", train="all", quantise="int8")
    assert "--quantise none" in told.value.hint
    assert task(MOODS, task="classify", train="all", quantise="none").quantise == "none"


def test_a_task_that_wants_another_form_than_the_backbone_has_is_refused(folder, task, settings):
    asked = task(MOODS, task="classify", quantise="int4")
    for backbone in (on(folder, "int8"), load_backbone(folder)):
        with pytest.raises(ConfigError, match="wants quantise = 'int4'"):
            fit(backbone, [asked], settings=settings)
    with pytest.raises(ConfigError, match="'int3'"):
        task(MOODS, task="classify", quantise="int3")


def test_a_run_does_not_go_on_in_another_form(folder, task, settings, tmp_path):
    asked = task(MOODS, task="classify", rank=2, quantise="int8")
    fit(on(folder, "int8"), [asked], settings=settings, folder=tmp_path / "run", save_every=0)
    with pytest.raises(ConfigError, match="wants quantise = 'int8'"):
        resume(load_backbone(folder, dtype="fp64"), tmp_path / "run", settings=settings)


def test_an_estimate_has_the_bytes_that_are_held(folder, form):
    config = read_config(folder)
    work = work_of(
        config, {"task": "generate", "quantise": form}, dtype="bf16", rows=1, length=16, checkpointing="none"
    )
    assert work.saved_by_form == load_backbone(folder, dtype="bf16").bytes - on(folder, form, "bf16").bytes
    found, plain = (estimate(each, Strategy.read(None, 1)) for each in (work, replace(work, quantised=None)))
    assert plain.weights - found.weights == work.saved_by_form > 0


def test_it_is_not_cut_into_shards(folder):
    with pytest.raises(ConfigError, match="codes with scales") as told:
        load_frozen(folder, Strategy.read("fsdp", 2), ALONE, quantise="int8")
    assert "ddp" in told.value.hint
