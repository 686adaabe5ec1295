"""What is equal in exact arithmetic stays equal step by step: no difference grows over 50 steps, in float64."""

from dataclasses import replace

import pytest

from umbel.training.observer import Observer
from umbel.training.passes import Packing

STEPS = 50
EXACT = 1e-10


class Cuts(Observer):
    """Whether kept states of the frozen layers were used."""

    def __init__(self):
        self.used = False

    def stepped(self, trainee, done):
        self.used |= trainee.cut is not None


@pytest.fixture
def task(tasks):
    """Adapted in the upper layer only, so that the lower one can be kept; without dropout."""
    options = {"rank": 2, "layers": (1,)}
    return replace(
        tasks["mood"], options=options, head_dropout=0.0, steps=STEPS, batch_size=8, trunk_cache="off", lr=2e-3
    )


WAYS = {
    "a batch of eight as eight of one": ({"micro_batch": 1}, {}),
    "packed": ({}, {"packing": Packing(join=True)}),
    "activations recomputed": ({}, {"checkpointing": "full"}),
    "no buckets": ({}, {"packing": Packing(bucket=False)}),
    "frozen layers kept": ({"trunk_cache": "auto"}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_one_of_fifty_steps_is_the_same(task, train, furthest, way):
    changed, more = WAYS[way]
    cuts = Cuts()
    plain, other = train(task)[0], train(replace(task, **changed), observer=cuts, **more)[0]
    assert len(plain.losses) == len(other.losses) == STEPS
    for step, (one, two) in enumerate(zip(plain.losses, other.losses, strict=True), start=1):
        assert one == pytest.approx(two, abs=EXACT), step
    assert furthest(plain, other) < EXACT
    assert plain.losses[-1] < 0.9 * plain.losses[0]
    assert cuts.used == ("trunk_cache" in changed)
