"""Backbones that were trained here: whole or as their changed tensors, put together exactly, and refused when wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from umbel.backbone.config import read_config
from umbel.backbone.decoder import whole_step
from umbel.backbone.fingerprint import fingerprint
from umbel.backbone.installed import CHANGED_FILE, Parent, Source, check_unneeded, find
from umbel.backbone.loading import checkpoint_views, load_backbone
from umbel.backbone.saving import export_backbone, save_backbone
from umbel.backbone.shards import fill
from umbel.backbone.tiny import tiny_backbone
from umbel.backbone.units import meta_decoder
from umbel.core.errors import Conflict, NotFound
from umbel.core.settings import Settings
from umbel.training.tuning.derived import derive

LAYER = ("model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def home(tmp_path, request) -> Settings:
    settings = Settings.load(tmp_path / "home")
    folder = tiny_backbone(settings.backbones / "root", tie_word_embeddings=request.param)
    source(None).write(folder)
    return settings


def source(parent, **more) -> Source:
    return Source(source="test", revision=None, sha256=None, licence="MIT", pulled_at="now", parent=parent, **more)


def trained(home, *, parent="root", dtype=torch.float32, names=LAYER):
    """(derived backbone in memory, its folder): ``names`` differ from the parent's; None is every tensor."""
    before = load_backbone(home.backbones / parent)
    own = load_backbone(home.backbones / parent)
    views = checkpoint_views(own.decoder)
    changed = set(views) if names is None else set(names)
    generator = torch.Generator().manual_seed(len(changed))
    for name in sorted(changed):
        views[name].mul_(1 + 0.1 * torch.randn(views[name].shape, generator=generator))
    derived = derive(own, dtype, task="mood")
    folder = home.backbones / derived.name
    folder.mkdir()
    link = Parent(name=before.name, fingerprint=before.fingerprint, folder=str(before.folder))
    save_backbone(derived, folder, source(link, fingerprint=derived.fingerprint), changed=changed)
    return derived, folder


def logits(backbone) -> torch.Tensor:
    tokens = torch.arange(40)[None] % 256
    return backbone.decoder(tokens, whole_step(rows=1, tokens=40, want=torch.arange(40))).logits


@pytest.mark.parametrize("names", [LAYER, None, ("model.embed_tokens.weight",)], ids=["layer", "whole", "embeddings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_read_back_is_what_was_trained_bit_by_bit(home, names, dtype):
    derived, folder = trained(home, dtype=dtype, names=names)
    assert (folder / CHANGED_FILE).is_file() == (names is not None)
    again = load_backbone(folder)
    assert again.fingerprint == derived.fingerprint == fingerprint(folder)
    assert again.dtype == dtype
    assert all(view.equal(checkpoint_views(again.decoder)[n]) for n, view in checkpoint_views(derived.decoder).items())
    assert logits(again).equal(logits(derived))
    assert not logits(again).equal(logits(load_backbone(home.backbones / "root", dtype=derived.config.dtype)))


def test_shards_of_a_part_are_its_own_tensors_and_not_its_parent_s(home):
    """Both files hold the changed tensors; the child's are read by each process."""
    _, folder = trained(home)
    made = meta_decoder(read_config(folder), torch.float32)
    fill(made, folder, torch.device("cpu"))
    child, parent = load_backbone(folder), load_backbone(home.backbones / "root")
    named, theirs, before = (dict(each.named_parameters()) for each in (made, child.decoder, parent.decoder))
    assert all(named[name].equal(theirs[name]) for name in theirs)
    assert not all(named[name].equal(before[name]) for name in before)


def test_a_part_holds_the_changed_tensors_alone(home):
    _, folder = trained(home)
    assert set(load_file(folder / CHANGED_FILE)) == set(LAYER)
    assert not (folder / "model.safetensors").exists()
    assert find(home, folder.name).partial


@torch.no_grad()
def test_an_exported_folder_gives_transformers_the_same_logits(home, tmp_path):
    derived, folder = trained(home)
    (folder / "README.md").write_text("# mood\n")
    out = tmp_path / "out"
    out.mkdir()
    export_backbone(folder, out)
    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values())
    theirs = model(torch.arange(40)[None] % 256).logits[0]
    torch.testing.assert_close(logits(derived), theirs, rtol=0, atol=2e-5)
    assert fingerprint(out) == derived.fingerprint
    assert {"README.md", "config.json", "tokenizer.json", "model.safetensors"} <= {each.name for each in out.iterdir()}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


@torch.no_grad()
def test_a_child_of_a_child_is_put_together_through_both(home):
    _, first = trained(home)
    second, folder = trained(home, parent=first.name, names=("model.layers.0.mlp.up_proj.weight",))
    assert load_backbone(folder).fingerprint == second.fingerprint


def test_a_parent_with_other_bytes_is_refused(home):
    _, folder = trained(home)
    tiny_backbone(home.backbones / "root", seed=9, tie_word_embeddings=load_backbone(folder).shape.tied)
    with pytest.raises(Conflict) as caught:
        load_backbone(folder)
    assert caught.value.code == "parent_changed"


def test_changed_tensors_with_other_bytes_are_refused(home):
    _, folder = trained(home)
    tensors = load_file(folder / CHANGED_FILE)
    tensors[LAYER[0]][0, 0] += 1
    save_file(tensors, folder / CHANGED_FILE)
    with pytest.raises(Conflict) as caught:
        load_backbone(folder)
    assert caught.value.code == "backbone_damaged"


def test_a_parent_that_is_gone_is_told_with_the_way_to_bring_it_back(home):
    _, folder = trained(home)
    shutil.rmtree(home.backbones / "root")
    with pytest.raises(NotFound, match="root") as caught:
        load_backbone(folder)
    assert "umbel pull backbone root" in caught.value.hint


def test_a_parent_is_needed_as_long_as_a_child_holds_only_its_changes(home):
    _, whole = trained(home, names=None)
    check_unneeded(home, "root")
    _, part = trained(home)
    with pytest.raises(Conflict, match=part.name):
        check_unneeded(home, "root")
    check_unneeded(home, whole.name)
