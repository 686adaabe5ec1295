"""Packed rows (``--pack``) learn what padded rows learn: positions start anew, attention stays inside each document."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from umbel.adapters.wear import fuse_all
from umbel.training.forward import run_pass
from umbel.training.passes import Packing, Seat, lines_of, pack, padding
from umbel.training.prepared import prepare
from umbel.training.trainee import trainee_of

EXACT = 1e-10
JOINED = Packing(join=True)


def test_packed_rows_of_mixed_tasks_learn_what_padded_rows_learn(tasks, train, furthest):
    padded, packed = train(*tasks.values()), train(*tasks.values(), packing=JOINED)
    for one, other in zip(padded, packed, strict=True):
        assert furthest(one, other) < EXACT, one.task.name
        assert one.losses == pytest.approx(other.losses, abs=EXACT)
        assert [each.loss for each in one.history] == pytest.approx([each.loss for each in other.history], abs=EXACT)
        assert [each.accuracy for each in one.history] == [each.accuracy for each in other.history]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("prefix", {"length": 3}),
        ("prompt", {"length": 3}),
        ("p_tuning", {"length": 3}),
        ("llama_adapter", {"length": 3}),
        ("bottleneck", {}),
        ("ia3", {}),
        ("lora", {"rank": 2, "dora": True, "dropout": 0.1}),
        ("lora", {"rank": 2, "targets": ("q_proj", "lm_head"), "dropout": 0.3}),
    ],
)
@pytest.mark.parametrize("head", ["speech", "mood"])
def test_every_method_learns_packed_what_it_learns_padded(tasks, train, furthest, head, method, options):
    task = replace(tasks[head], method=method, options=options, pooling="mean", steps=2)
    padded, packed = train(task)[0], train(task, packing=JOINED)[0]
    assert furthest(padded, packed) < EXACT
    assert padded.losses[-1] != padded.losses[0]


def test_micro_batches_and_small_passes_change_nothing_either(tasks, train, furthest):
    padded = train(tasks["speech"])[0]
    for task, packing in (
        (tasks["speech"], Packing(join=True, tokens=40)),
        (replace(tasks["speech"], micro_batch=3), JOINED),
    ):
        assert furthest(padded, train(task, packing=packing)[0]) < EXACT


@pytest.fixture
def seats(tasks, wide, settings):
    trainees = [trainee_of(prepare(task, wide, settings), wide) for task in tasks.values()]
    return trainees, [seat for i, each in enumerate(trainees) for seat in each.seats(i, each.prepared.train.examples)]


def test_every_row_has_a_seat_and_a_line_holds_one_adapter(seats):
    _, wanted = seats
    passes = pack(wanted, JOINED, {0: 4})
    found = sorted((seat.trainee, seat.example.index) for each in passes for seat in each)
    assert found == sorted((seat.trainee, seat.example.index) for seat in wanted)
    for each in passes:
        assert all(len({seat.trainee for seat in line}) == 1 for line in lines_of(each))
        assert sum(seat.trainee == 0 for seat in each) <= 4
        assert [seat.trainee for seat in each] == sorted(seat.trainee for seat in each)
    assert any(len(line) > 1 for each in passes for line in lines_of(each))


def test_rows_of_different_lengths_pack_with_less_padding_than_they_pad(seats):
    _, wanted = seats
    ragged = [seat for seat in wanted if seat.trainee in (0, 1)]
    assert padding(pack(ragged, JOINED)) < padding([ragged])
    assert padding(pack(ragged, JOINED)) < 0.1


@torch.no_grad()
def test_no_document_feels_what_lies_beside_it_in_its_line(seats, wide):
    trainees, wanted = seats
    own = [replace(seat, line=0) for seat in wanted if seat.trainee == 0][:3]
    adapters = [trainees[0].adapter]
    worn = fuse_all(adapters)
    first, last = (_loss(wide, adapters, worn, [own[place]]) for place in (0, 2))
    for other in (own[1], _scrambled(own[1])):
        middle = _loss(wide, adapters, worn, [other])
        together = _loss(wide, adapters, worn, [own[0], other, own[2]])
        assert together == pytest.approx(first + middle + last, rel=1e-12)
    assert _loss(wide, adapters, worn, [_scrambled(own[1])]) != pytest.approx(_loss(wide, adapters, worn, [own[1]]))


def _loss(wide, adapters, worn, seats):
    return float(run_pass(wide, adapters, worn, seats)[0].loss)


def _scrambled(seat: Seat) -> Seat:
    ids = np.ascontiguousarray(seat.example.ids[::-1])
    return replace(seat, example=replace(seat.example, ids=ids))
