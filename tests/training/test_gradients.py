"""Gradients against finite differences, through everything that training runs."""

import pytest
import torch

from umbel.core.errors import ConfigError
from umbel.training.passes import Packing
from umbel.training.prepared import prepare
from umbel.training.trainee import trainee_of
from umbel.training.window import Machine, _accumulate

STEP = 1e-6


@pytest.mark.parametrize("name", ["speech", "mood", "topic", "names", "alike", "height"])
def test_gradients_agree_with_finite_differences(tasks, wide, settings, name):
    machine = Machine(wide, Packing())
    trainee = trainee_of(prepare(tasks[name], wide, settings), wide)
    _disturb(trainee)
    _accumulate(machine, [trainee])
    told = {path: tensor.grad.flatten().clone() for path, tensor in trainee.trained.items()}
    generator = torch.Generator().manual_seed(1)
    for path, tensor in trainee.trained.items():
        place = int(torch.randint(tensor.numel(), (), generator=generator))
        slope = _slope(machine, trainee, tensor, place)
        assert float(told[path][place]) == pytest.approx(slope, abs=1e-6, rel=1e-4), path


def _disturb(trainee) -> None:
    """Away from zero, where half of the gradients vanish."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trainee.trained.values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


@torch.no_grad()
def _slope(machine, trainee, tensor, place) -> float:
    flat = tensor.view(-1)
    losses = []
    for sign in (1, -1):
        flat[place] += sign * STEP
        with torch.enable_grad():
            losses.append(_accumulate(machine, [trainee])[0][0])
        flat[place] -= sign * STEP
    return (losses[0] - losses[1]) / (2 * STEP)


def test_the_backbone_has_no_gradient_and_keeps_its_bytes(tasks, wide, train):
    from umbel.training.fitting import frozen_digest

    before = frozen_digest(wide)
    train(*tasks.values())
    assert frozen_digest(wide) == before
    assert all(parameter.grad is None for parameter in wide.decoder.parameters())


def test_one_changed_bit_of_the_backbone_is_noticed(tiny):
    from umbel.backbone.loading import load_backbone
    from umbel.training.fitting import frozen_digest

    backbone = load_backbone(tiny)
    before = frozen_digest(backbone)
    backbone.decoder.layers[1].down.weight.data[0, 0] *= 1 + 1e-6
    assert frozen_digest(backbone) != before


def test_an_adapter_without_anything_to_train_is_refused(tasks, train):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="nothing to train"):
        train(replace(tasks["speech"], method="none", options={}))


def test_a_frozen_trunk_classifier_trains_its_head_alone(tasks, train):
    from dataclasses import replace

    found = train(replace(tasks["mood"], method="none", options={}, steps=30))[0]
    assert all(name.startswith("score") for name in found.adapter.tensors)
    assert found.losses[-1] < found.losses[0] / 2
