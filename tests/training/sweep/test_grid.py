"""What ``--sweep`` may say, and which candidates come of it."""

import math

import pytest

from umbel.core.errors import ConfigError
from umbel.training.sweep.grid import grid_of
from umbel.training.sweep.halving import Halving
from umbel.training.task import Task

TASK = Task(name="mood", data="rows.jsonl", task="classify", options={"rank": 2}, parent="mood:1")


def test_every_combination_is_tried_in_the_order_that_was_asked_for():
    grid = grid_of(TASK, ["lr=1e-4,3e-4", "rank=4,8"], hidden=576)
    found = [(each.lr, each.options["rank"]) for each in grid.candidates]
    assert found == [(1e-4, 4), (1e-4, 8), (3e-4, 4), (3e-4, 8)]
    assert [each.name for each in grid.candidates] == ["mood.1", "mood.2", "mood.3", "mood.4"]
    assert grid_of(TASK, ["lr=1e-4,3e-4,rank=4,8"], hidden=576).choices == grid.choices
    assert {each.parent for each in grid.candidates} == {"mood:1"}


def test_values_that_come_twice_are_tried_once():
    assert len(grid_of(TASK, ["lr=1e-4,1e-4"], hidden=576).choices) == 1


def test_auto_is_eight_rates_around_the_rules_and_goes_with_other_options():
    rates = [choice["lr"] for choice in grid_of(TASK, ["auto"], hidden=576).choices]
    assert len(rates) == 8
    assert rates == sorted(rates)
    assert rates[3] == 0.0013  # 5e-4 x (2000 / 576) ** 0.781
    assert len(grid_of(TASK, ["auto", "rank=4,8"], hidden=576).choices) == 16


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (["lr"], "invalid_sweep"),
        (["lr="], "invalid_sweep"),
        (["=3"], "invalid_sweep"),
        (["lr=1,,2"], "invalid_sweep"),
        (["lr=1", "lr=2"], "invalid_sweep"),
        (["auto", "lr=2"], "invalid_sweep"),
        (["limit=10,20"], "invalid_sweep"),
        (["name=a,b"], "invalid_sweep"),
        (["data=a,b"], "invalid_sweep"),
        (["rnak=4,8"], "unknown_option"),
        (["rank=four"], "invalid_option"),
        (["seed=" + ",".join(map(str, range(65)))], "sweep_too_large"),
    ],
)
def test_what_is_no_sweep_is_refused(asked, code):
    with pytest.raises(ConfigError) as caught:
        _ = grid_of(TASK, asked, hidden=576).candidates
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("field", "rungs", "runs"), [(8, (1 / 16, 1 / 8, 1 / 4), 1.75), (2, (1 / 4,), 1.25), (1, (), 1)]
)
def test_the_rungs_double_up_to_a_quarter_and_the_cost_is_known(field, rungs, runs):
    assert Halving(field).rungs == rungs
    assert Halving(field).runs == pytest.approx(runs)


def test_twice_the_field_costs_a_quarter_of_a_run_more():
    assert all(Halving(field).runs <= 1 + math.ceil(math.log2(field)) / 4 for field in range(1, 65))
