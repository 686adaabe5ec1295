"""What each form of activation checkpointing computes again, counted; that results stay is shown where it trains."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from umbel.backbone.checkpointing import FORMS, Checkpointing
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import ConfigError

LAYERS = 4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tiny_backbone(tmp_path_factory.mktemp("backbone") / "four", num_hidden_layers=LAYERS)
    decoder = load_backbone(folder).decoder
    for layer in decoder.layers:
        layer.o.weight.requires_grad_()
    return decoder


class Operations(TorchDispatchMode):
    """Counts what is computed; what a form found kept does not come here."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[str(function)] += 1
        return function(*args, **(kwargs or {}))


def backward(decoder, form):
    """(how often each layer ran in forward and backward, operations of the backward pass)."""
    entered = Counter()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, place=place: entered.update([place]))
        for place, layer in enumerate(decoder.layers)
    ]
    step = whole_step(rows=2, tokens=9, checkpointing=Checkpointing.parse(form))
    loss = decoder(torch.arange(18).view(2, 9), step).hidden.square().sum()
    with Operations() as seen:
        loss.backward()
    for hook in hooks:
        hook.remove()
    return [entered[place] for place in range(LAYERS)], seen.found


@pytest.mark.parametrize(
    ("form", "runs"),
    [("none", [1, 1, 1, 1]), ("full", [2, 2, 2, 2]), ("every=2", [2, 1, 2, 1]), ("every=3", [2, 1, 1, 2])],
)
def test_the_layers_that_keep_nothing_run_again(decoder, form, runs):
    assert backward(decoder, form)[0] == runs


def test_selective_computes_norms_again_and_no_product(decoder):
    products = ("aten.mm.default", "aten.bmm.default")
    _, kept = backward(decoder, "none")
    _, full = backward(decoder, "full")
    runs, selective = backward(decoder, "selective")
    assert runs == [2] * LAYERS
    assert [selective[name] for name in products] == [kept[name] for name in products]
    assert [full[name] for name in products] > [kept[name] for name in products]
    assert selective["aten.silu.default"] == full["aten.silu.default"] > kept["aten.silu.default"]


@pytest.mark.parametrize("form", ["none", "full", "every=2", "selective"])
def test_a_form_is_read_as_it_is_written(form):
    assert Checkpointing.parse(str(Checkpointing.parse(form))) == Checkpointing.parse(form)


@pytest.mark.parametrize("form", ["some", "every=0", "every=x", "full=2"])
def test_what_is_no_form_is_told_with_those_that_are(form):
    with pytest.raises(ConfigError) as caught:
        Checkpointing.parse(form)
    assert all(each in caught.value.hint for each in FORMS)
