"""The time that a plan tells is what the training then takes: by a clock that passes alone move, so to the digit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from umbel.core.errors import Interrupted
from umbel.training import fit, resume, tune
from umbel.training import window as windows
from umbel.training.estimate import pace
from umbel.training.observer import Observer
from umbel.training.passes import Packing, Seat, places
from umbel.training.prepared import prepare
from umbel.training.sweep.grid import grid_of
from umbel.training.sweep.sweeping import sweep
from umbel.training.trainee import trainee_of
from umbel.training.trunk.trunk import Trunk
from umbel.training.window import Machine

PASS, PLACE = 1e-3, 5e-5
"""Seconds of the clock below."""


class Clock(Observer):
    """Moved by every pass: so much for each and for each of its places, three times as much with a gradient."""

    def __init__(self) -> None:
        self.now = self.passes = 0.0

    def perf_counter(self) -> float:
        return self.now

    def run_pass(self, *given: Any, **more: Any) -> Any:
        part: list[Seat] = given[3]
        self.now += (PASS + PLACE * places(part)) * (3 if torch.is_grad_enabled() else 1)
        return self.really(*given, **more)

    def group(self, trunk: Trunk, *given: Any) -> Any:
        self.now += 100 * PASS
        return self.really_group(trunk, *given)

    def planned(self, plan: Any) -> None:
        self.plan, self.began = plan, self.now

    @property
    def taken(self) -> float:
        return self.now - self.began


@pytest.fixture
def clock(monkeypatch) -> Iterator[Clock]:
    found = Clock()
    found.really, found.really_group = windows.run_pass, Trunk._group
    monkeypatch.setattr(pace, "time", found)
    monkeypatch.setattr(pace, "_NOTES", 0.0)
    monkeypatch.setattr(windows, "run_pass", found.run_pass)
    monkeypatch.setattr(Trunk, "_group", lambda trunk, *given: found.group(trunk, *given))
    return found


@pytest.mark.parametrize("name", ["speech", "mood", "topic", "names", "alike", "height"])
def test_one_adapter_of_each_kind(tasks, backbone, settings, clock, name):
    fit(backbone, [replace(tasks[name], steps=24)], settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.05)


def test_adapters_together_of_which_some_leave_early(tasks, backbone, settings, clock):
    some = [replace(each, steps=10 * number) for number, each in enumerate(tasks.values(), start=1)]
    fit(backbone, some, settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.05)


def test_small_passes_and_long_trainings(tasks, backbone, settings, clock):
    long = replace(tasks["speech"], steps=300, batch_size=12)
    fit(backbone, [long], settings=settings, observer=clock, packing=Packing(tokens=48))
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.05)


def test_a_sweep_whose_candidates_leave(tasks, backbone, settings, clock):
    grid = grid_of(replace(tasks["mood"], steps=64), ["auto"], backbone.shape.hidden)
    sweep(backbone, grid, settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.15)


def test_kept_states_of_frozen_layers_are_computed_once(task, backbone, settings, clock):
    rows = [{"text": f"{'good ' * (i % 7)}thing {i}", "label": "ab"[i % 2]} for i in range(900)]
    head = task(rows, name="head", task="classify", method="none", steps=180, validation_fraction=0.2)
    fit(backbone, [head], settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.15)
    first = clock.taken
    fit(backbone, [head], settings=settings, observer=clock)  # all is there
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.05)
    assert clock.taken < first + 1e-9


def test_what_a_resumed_run_has_left(tasks, backbone, settings, clock, tmp_path):
    class Stops(Clock):
        steps = 0

        def stepped(self, *_: Any) -> None:
            self.steps += 1

    heard = Stops()
    stop = lambda: "enough" if heard.steps == 30 else None  # noqa: E731
    with pytest.raises(Interrupted):
        fit(backbone, [replace(tasks["mood"], steps=40)], settings=settings, observer=heard, stop=stop, folder=tmp_path)
    resume(backbone, tmp_path, settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.1)


def test_trained_layers(tasks, backbone, settings, clock):
    own = replace(tasks["mood"], train="layers=last:1", method="none", options={}, steps=24)
    tune(backbone, own, settings=settings, observer=clock)
    assert clock.plan.seconds == pytest.approx(clock.taken, rel=0.05)


@pytest.mark.parametrize("when", range(8))
@pytest.mark.parametrize("steps", [10, 45, 200])
def test_one_pause_of_the_machine_spoils_no_plan(tasks, backbone, settings, clock, steps, when):
    """It falls into one of the plan's first passes: a computer that was shut for an hour."""
    went = clock.run_pass

    def paused(*given: Any, **more: Any) -> Any:
        clock.now += 3600 * (clock.passes == when)
        clock.passes += 1
        return went(*given, **more)

    windows.run_pass = paused  # the fixture puts it back
    trainees = [trainee_of(prepare(replace(tasks["mood"], steps=steps), backbone, settings), backbone)]
    machine = Machine(backbone, Packing())
    plain = pace.seconds_to_train(trainees, machine)
    if clock.passes > when:
        clock.passes = 100
        assert plain == pytest.approx(pace.seconds_to_train(trainees, machine), rel=0.15)


def test_trials_leave_nothing_behind(tasks, backbone, settings):
    trainees = [trainee_of(prepare(each, backbone, settings), backbone) for each in tasks.values()]
    before = [{name: tensor.clone() for name, tensor in each.tensors.items()} for each in trainees]
    assert pace.seconds_to_train(trainees, Machine(backbone, Packing())) > 0
    for trainee, tensors in zip(trainees, before, strict=True):
        assert trainee.step == 0
        assert not trainee.losses
        assert not trainee.optimizer.state
        assert all(tensor.grad is None for tensor in trainee.trained.values())
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in trainee.tensors.items())


def test_the_optimizers_step_is_told_by_part_of_a_large_backbone(task, backbone, settings, monkeypatch):
    rows = [{"text": f"thing {i}", "label": "ab"[i % 2]} for i in range(20)]
    trainee = trainee_of(prepare(task(rows, name="it", task="classify"), backbone, settings), backbone)
    monkeypatch.setattr(pace, "_MOVED", 1)
    assert 0 < pace._moving(trainee, Machine(backbone, Packing())) < 1


def test_a_trial_ends_where_it_takes_too_long(tasks, backbone, settings, clock, monkeypatch):
    tried = []
    monkeypatch.setattr(pace, "rehearse", lambda *given: tried.append(given) or setattr(clock, "now", clock.now + 60))
    fit(backbone, [replace(tasks["mood"], steps=200)], settings=settings, observer=clock)
    assert len(tried) == 2
    assert clock.plan.seconds > 55 * 200


def test_work_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    from umbel.training.estimate.ledger import Ledger

    x, weight, bias = torch.ones(4, 3), torch.ones(3, 5, requires_grad=True), torch.ones(5)

    def run() -> None:
        (torch.addmm(bias, x, weight).sum() + torch.bmm(x[None], weight[None]).sum()).backward()

    with Ledger([x, weight, bias], {weight: 1.0}) as ledger:
        run()
    ledger.close()
    with FlopCounterMode(display=False) as counted:
        run()
    assert ledger.operations == counted.get_total_flops() > 0
