"""A sweep finds the configuration that the whole grid would find, in less time, and the same one every time."""

from dataclasses import replace

import pytest

from umbel.core.errors import ConfigError, Interrupted, UmbelError
from umbel.training import fit
from umbel.training.observer import Observer
from umbel.training.sweep.grid import grid_of
from umbel.training.sweep.sweeping import resume_sweep, sweep

RATES = ["3e-5", "3e-4", "3e-3", "3e-2"]
WORDS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i % 17} {i}", "label": "ab"[i % 2]} for i in range(160)]


@pytest.fixture
def toy(task):
    return task(WORDS, name="toy", task="classify", steps=32, rank=2, batch_size=8, lr=None)


@pytest.fixture
def grid(toy):
    return grid_of(toy, [f"lr={','.join(RATES)}"], hidden=32)


def test_the_winner_is_the_whole_grids_winner(grid, backbone, settings):
    everything = fit(backbone, grid.candidates, settings=settings)
    best = min(everything, key=lambda each: each.best.loss)
    won = sweep(backbone, grid, settings=settings)
    assert won.best.loss <= best.best.loss + 0.02  # nats; the worst of the grid is far beyond
    assert max(each.best.loss for each in everything) > best.best.loss + 0.2
    assert won.sweep.tried[0].choice["lr"] == str(won.task.lr) or float(won.sweep.tried[0].choice["lr"]) == won.task.lr


def test_the_winner_is_what_it_would_be_if_trained_alone(grid, wide, settings, furthest):
    won = sweep(wide, grid, settings=settings)
    alone = fit(wide, [won.task], settings=settings)[0]
    assert won.task.name == "toy"
    assert won.prepared.task == won.task
    assert won.plan.name == "toy"
    assert furthest(won, alone) < 1e-10
    assert won.losses == pytest.approx(alone.losses, abs=1e-10)
    assert [each.step for each in won.history] == [each.step for each in alone.history]


def test_half_of_the_field_leaves_at_each_rung_and_one_goes_to_the_end(toy, backbone, settings):
    grid = grid_of(replace(toy, steps=64), ["lr=1e-5,1e-4,1e-3,3e-3,1e-2,3e-2", "head-depth=0,1"], hidden=32)
    assert len(grid.choices) == 12
    won = sweep(backbone, grid, settings=settings)
    steps = sorted((each.steps for each in won.sweep.tried), reverse=True)
    assert steps == [64, 32, 16, 8, 8, 8, 4, 4, 4, 4, 4, 4]  # no rung before step 4, nor two at one step
    assert won.sweep.tried[0].status == "done"
    assert {each.status for each in won.sweep.tried[1:]} == {"dominated"}


def test_it_ends_the_same_every_time_and_when_it_was_stopped_between(grid, backbone, settings, tmp_path):
    class Stop:
        def __init__(self, windows):
            self.left = windows

        def __call__(self):
            self.left -= 1
            return "Ctrl-C" if self.left < 0 else None

    never = sweep(backbone, grid, settings=settings)
    for windows in (2, 5, 20):
        folder = tmp_path / str(windows)
        with pytest.raises(Interrupted):
            sweep(backbone, grid, settings=settings, folder=folder, stop=Stop(windows))
        again = resume_sweep(backbone, folder, settings=settings)
        assert again.sweep == never.sweep
        assert again.rungs == never.rungs  # at the steps where they were taken, not where it was stopped
        assert again.task.name == "toy"
        assert again.task.lr == never.task.lr
        assert all(again.adapter.tensors[name].equal(tensor) for name, tensor in never.adapter.tensors.items())


def test_one_that_diverges_leaves_and_is_told(toy, backbone, settings):
    won = sweep(backbone, grid_of(toy, ["lr=1e-3,1e30"], hidden=32), settings=settings)
    failed = won.sweep.tried[-1]
    assert won.task.lr == 1e-3
    assert failed.status == "failed"
    assert "not a finite number" in failed.why


def test_where_all_diverge_the_reason_is_raised(toy, backbone, settings):
    with pytest.raises(UmbelError, match="not a finite number"):
        sweep(backbone, grid_of(toy, ["lr=1e29,1e30"], hidden=32), settings=settings)


def test_without_validation_rows_there_is_nothing_to_choose_by(toy, backbone, settings):
    grid = grid_of(replace(toy, validation_fraction=0.0, steps=2), ["lr=1e-3,1e-2"], hidden=32)
    with pytest.raises(ConfigError) as caught:
        sweep(backbone, grid, settings=settings)
    assert caught.value.code == "nothing_to_compare"


def test_every_candidate_goes_on_from_the_parent(toy, backbone, settings):
    parent = fit(backbone, [toy], settings=settings)[0].adapter
    first = {}

    class Ears(Observer):
        def stepped(self, trainee, done):
            first.setdefault(trainee.task.name, done.loss)

    sweep(backbone, grid_of(toy, ["lr=1e-4,1e-3"], hidden=32), settings=settings, parents={"toy": parent})
    fit(backbone, [toy], settings=settings, observer=Ears())
    sweep(
        backbone,
        grid_of(toy, ["lr=1e-4,1e-3"], hidden=32),
        settings=settings,
        parents={"toy": parent},
        observer=Ears(),
    )
    assert first["toy.1"] == first["toy.2"] < first["toy"] - 0.1
