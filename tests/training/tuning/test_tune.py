"""Training a backbone's own tensors: what moves, what stays, and that it is the gradient of the whole model."""

from dataclasses import replace

import pytest
import torch

from umbel.backbone.loading import checkpoint_views, load_backbone
from umbel.core.errors import ConfigError, Interrupted
from umbel.training import fit
from umbel.training.fitting import frozen_digest
from umbel.training.passes import Packing
from umbel.training.tuning.own import own_backbone
from umbel.training.tuning.tune import resume_tuning, start
from umbel.training.window import _accumulate

EXACT = 1e-10


def moved(before, after) -> set[str]:
    theirs = checkpoint_views(after.decoder)
    return {name for name, view in checkpoint_views(before.decoder).items() if not view.equal(theirs[name])}


def furthest(one, other) -> float:
    """Largest difference over backbone and head."""
    mine, theirs = checkpoint_views(one.backbone.decoder), checkpoint_views(other.backbone.decoder)
    heads = [(t, other.trained.adapter.tensors[name]) for name, t in one.trained.adapter.tensors.items()]
    return max(float((a - b).abs().max()) for a, b in [*((mine[name], theirs[name]) for name in mine), *heads])


@pytest.mark.parametrize("head", ["generate", "classify", "regress", "tag"])
@pytest.mark.parametrize("train", ["all", "layers=last:2", "layers=first:1", "layers=1,4", r"layers=regex:mlp\.down"])
def test_exactly_the_selected_tensors_move_and_the_given_backbone_stays(six, tuned, head, train):
    before = frozen_digest(six)
    found = tuned(head, train=train, steps=2)
    names = set(checkpoint_views(six.decoder))
    wanted = {name for name in names if found.trained.task.selection.chooses(name, 6)}
    if head != "generate" and train == "all":
        assert wanted == names
    assert moved(six, found.backbone) == wanted == found.changed
    assert frozen_digest(six) == before
    assert found.backbone.fingerprint != six.fingerprint
    assert found.trained.adapter.backbone == found.backbone.fingerprint
    assert not any(parameter.requires_grad for parameter in found.backbone.decoder.parameters())


@pytest.mark.parametrize("train", ["all", "layers=last:2"])
def test_the_loss_falls(tuned, train):
    losses = tuned("classify", train=train, steps=30).trained.losses
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_gradient_is_that_of_hugging_faces_model(six, own_task, settings):
    """One unpadded row at a time, every tensor of the checkpoint, in fp32."""
    from transformers import AutoModelForCausalLM

    plain = load_backbone(six.folder, dtype="fp32")
    machine, trainee = start(plain, own_task("generate", train="all", batch_size=4), settings)
    theirs = AutoModelForCausalLM.from_pretrained(six.folder, dtype=torch.float32)
    count = sum(example.count for example in trainee.next_rows())
    for example in trainee.next_rows():
        ids = torch.from_numpy(example.ids)[None].long()
        labels = torch.where(torch.from_numpy(example.spoken)[None], ids, -100)
        logits = theirs(ids).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / count).backward()
    _accumulate(machine, [trainee])
    with torch.no_grad():
        for parameter in machine.backbone.decoder.parameters():
            parameter.copy_(parameter.grad)
    ours = checkpoint_views(machine.backbone.decoder)
    for name, parameter in theirs.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-4 * scale)


def test_frozen_tensors_share_memory_and_have_no_gradient_and_no_optimizer_state(six, own_task, settings):
    machine, trainee = start(six, own_task("classify", train="layers=4"), settings)
    _accumulate(machine, [trainee])
    trainee.take_step()
    theirs = dict(six.decoder.named_parameters())
    frozen = [(name, p) for name, p in machine.backbone.decoder.named_parameters() if not p.requires_grad]
    assert len(frozen) == len(theirs) - 6
    for name, parameter in frozen:
        assert parameter.data_ptr() == theirs[name].data_ptr()
        assert parameter.grad is None
        assert parameter not in trainee.optimizer.state
    assert len(trainee.optimizer.state) == 6 + 1


def test_activations_below_the_lowest_trained_layer_are_not_kept(six, own_task, settings):
    def kept(train: str) -> int:
        machine, trainee = start(six, own_task("classify", train=train), settings)
        seen: dict[int, int] = {}

        def keep(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _accumulate(machine, [trainee])
        return sum(seen.values())

    one, three, everything = kept("layers=last:1"), kept("layers=last:3"), kept("all")
    assert one < 0.45 * three
    assert three < 0.6 * everything


def test_one_batch_of_eight_is_eight_micro_batches_of_one(tuned):
    for train in ("all", "layers=last:2"):
        whole = tuned("classify", train=train, batch_size=8)
        crumbs = tuned("classify", train=train, batch_size=8, micro_batch=1, packing=Packing(bucket=False, tokens=40))
        assert furthest(whole, crumbs) < EXACT
        assert furthest(whole, tuned("classify", train=train, lr=1e-12)) > 1e-3


@pytest.mark.parametrize("checkpointing", ["full", "every=2", "selective"])
@pytest.mark.parametrize("train", ["all", "layers=last:2"])
def test_recomputed_activations_give_the_same_weights_with_dropout_on(tuned, train, checkpointing):
    more = {"train": train, "head_depth": 1, "head_dropout": 0.3}
    kept = tuned("classify", **more)
    assert furthest(kept, tuned("classify", checkpointing=checkpointing, **more)) < EXACT
    assert furthest(kept, tuned("classify", train=train, head_depth=1)) > 1e-4


@pytest.mark.parametrize("head", ["generate", "classify"])
def test_resume_gives_the_same_bytes(six, tuned, own_task, settings, tmp_path, head):
    never = tuned(head, steps=6)
    left = iter([None, None, None, "Ctrl-C"])
    with pytest.raises(Interrupted):
        tuned(head, steps=6, folder=tmp_path / "run", stop=lambda: next(left))
    again = resume_tuning(six, tmp_path / "run", settings=settings)
    assert again.backbone.fingerprint == never.backbone.fingerprint
    assert again.trained.losses == never.trained.losses
    assert furthest(again, never) == 0


def test_a_backbone_that_is_trained_is_trained_alone(six, own_task, settings):
    with pytest.raises(ConfigError) as caught:
        fit(six, [own_task("classify")], settings=settings)
    assert caught.value.code == "trains_alone"


def test_a_part_of_a_fused_weight_cannot_be_trained_without_the_rest(six, own_task, settings):
    task = own_task("classify", train="layers=regex:q_proj")
    with pytest.raises(ConfigError, match="fused") as caught:
        start(six, task, settings)
    assert "k_proj" in caught.value.hint
    start(six, replace(task, train="layers=regex:[qkv]_proj"), settings)


def test_a_pattern_that_names_nothing_is_told(six, own_task):
    with pytest.raises(ConfigError, match="names no tensor"):
        own_backbone(six, own_task("classify", train="layers=regex:nowhere").selection, None)


def test_equal_seeds_give_equal_backbones_by_name_too(tuned):
    one, other, third = tuned("tag"), tuned("tag"), tuned("tag", seed=1)
    assert one.backbone.name == other.backbone.name
    assert one.backbone.name.startswith("tag.")
    assert one.backbone.name != third.backbone.name
