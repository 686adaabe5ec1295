"""Order, batches and passes: every row once, little padding, a pure function of seed and step."""

import numpy as np
import pytest

from umbel.training.batches import Batches
from umbel.training.data.encode import Example
from umbel.training.passes import Packing, Seat, pack, padding
from umbel.training.schedule import Schedule

LENGTHS = np.random.default_rng(0).integers(4, 70, 500).tolist()


def seats(lengths, trainee=0):
    return [Seat(trainee, Example(i, np.zeros(n, dtype=np.int32), None)) for i, n in enumerate(lengths)]


def test_every_row_comes_once_in_every_epoch():
    batches = Batches(LENGTHS, batch_size=16, seed=0)
    for epoch in range(3):
        rows = [row for step in range(batches.per_epoch) for row in batches.at(epoch * batches.per_epoch + step)]
        assert sorted(rows) == list(range(500))


def test_a_step_s_rows_do_not_depend_on_what_was_asked_before():
    batches, again = Batches(LENGTHS, batch_size=16, seed=5), Batches(LENGTHS, batch_size=16, seed=5)
    walked = [batches.at(step) for step in range(80)]
    assert [again.at(step) for step in reversed(range(80))] == walked[::-1]


def test_seeds_and_epochs_give_other_orders():
    first = Batches(LENGTHS, batch_size=16, seed=0)
    assert first.at(0) != Batches(LENGTHS, batch_size=16, seed=1).at(0)
    assert first.at(0) != first.at(first.per_epoch)


def test_batches_come_in_no_order_of_length():
    batches = Batches(LENGTHS, batch_size=16, seed=0)
    means = [np.mean([LENGTHS[row] for row in batches.at(step)]) for step in range(batches.per_epoch)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_less_than_a_tenth_is_padding(batch_size):
    batches = Batches(LENGTHS, batch_size=batch_size, seed=0)
    passes = [
        part
        for step in range(batches.per_epoch)
        for part in pack(seats([LENGTHS[row] for row in batches.at(step)]), Packing())
    ]
    assert padding(passes) < 0.1


@pytest.mark.parametrize("packing", [Packing(), Packing(tokens=100), Packing(bucket=False), Packing(waste=0.0)])
def test_every_seat_is_in_one_pass_within_the_budget(packing):
    given = seats(LENGTHS[:60], 1) + seats(LENGTHS[60:90], 0)
    passes = pack(given, packing, {0: 4})
    assert sorted(id(seat) for part in passes for seat in part) == sorted(map(id, given))
    for part in passes:
        assert len(part) == 1 or len(part) * max(seat.length for seat in part) <= packing.tokens
        assert sum(seat.trainee == 0 for seat in part) <= 4
        assert [seat.trainee for seat in part] == sorted(seat.trainee for seat in part)


def test_a_row_longer_than_the_budget_gets_a_pass_of_its_own():
    assert [len(part) for part in pack(seats([500, 10, 10]), Packing(tokens=100))] == [1, 2]


def test_the_learning_rate_rises_and_falls_to_nearly_nothing():
    for decay in ("cosine", "linear"):
        rates = [Schedule(1.0, 100, 10, decay).at(step) for step in range(100)]
        assert rates[:11] == sorted(rates[:11])
        assert rates[10] == 1.0
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0 < rates[-1] < 0.02
    assert Schedule(1.0, 100, 0, "constant").at(99) == 1.0


def test_the_rate_follows_the_published_rule():
    from umbel.adapters import catalog
    from umbel.training.schedule import default_learning_rate

    lora = catalog.method("lora")
    assert default_learning_rate(lora, 2000) == pytest.approx(lora.learning_rate)
    assert default_learning_rate(lora, 576) == pytest.approx(5e-4 * (2000 / 576) ** 0.781, rel=0.05)
