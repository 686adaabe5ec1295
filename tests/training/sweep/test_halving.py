"""Who leaves a sweep at a rung."""

from types import SimpleNamespace

import pytest

from umbel.training import TrainedAdapter
from umbel.training.sweep.halving import Halving
from umbel.training.trainee import Validation

NAN = float("nan")


def candidate(*losses: float) -> SimpleNamespace:
    return SimpleNamespace(active=True, rungs=[Validation(4, loss, 0.0) for loss in losses])


@pytest.mark.parametrize(
    "losses", [(NAN, 2.0, 1.0, 3.0), (2.0, NAN, 1.0, 3.0), (3.0, 2.0, 1.0, NAN), (NAN, 2.0, 1.0, NAN)]
)
def test_one_whose_loss_is_not_a_number_leaves_before_any_other(losses):
    field = [candidate(loss) for loss in losses]
    gone = [losses[field.index(each)] for each in Halving(4).leaving(field)]
    assert len(gone) == 2
    assert not {1.0, 2.0} & set(gone)


def test_nobody_leaves_before_all_have_reached_the_rung():
    assert Halving(4).leaving([candidate(1.0), candidate(2.0), candidate(3.0), candidate()]) == []


def test_a_first_validation_that_is_not_a_number_is_not_the_best_for_good():
    trained = TrainedAdapter(task=None, adapter=None, history=(Validation(1, NAN, 0.0), Validation(2, 3.0, 0.0)))
    assert trained.best.step == 2
