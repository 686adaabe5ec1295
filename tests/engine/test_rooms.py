"""Memory of stacks: taken slot by slot, given back, and never moved where the system lets us reserve addresses."""

import sys
from pathlib import Path

import pytest
import torch

from umbel.engine import rooms as module
from umbel.engine.rooms import Doubling, Reserved, rooms

KEY, WIDE = (0, "qkv.A"), (1, "gate")
EXAMPLE = {KEY: torch.ones(3, 5, dtype=torch.bfloat16), WIDE: torch.ones(7)}
linux = pytest.mark.skipif(sys.platform != "linux", reason="private pages are Linux's")


def filled(made, count):
    for slot in range(count):
        made.need(slot + 1)
        for tensor in made.tensors.values():
            tensor[slot] = slot + 1
    return made


def intact(made, count):
    return all(bool((tensor[slot] == slot + 1).all()) for tensor in made.tensors.values() for slot in range(count))


@pytest.mark.parametrize("made", [Doubling(EXAMPLE), pytest.param(None, marks=linux)], ids=["doubling", "reserved"])
def test_slots_keep_what_they_hold_while_others_come_and_go(made):
    made = filled(made or Reserved(EXAMPLE, 40), 33)
    assert intact(made, 33)
    for used in (20, 8, 3):
        made.trim(used)
        assert intact(made, used)
    assert intact(filled(made, 9), 9)


@linux
def test_an_adapter_that_comes_moves_no_other():
    made = rooms(EXAMPLE, 64)
    before = {key: tensor.data_ptr() for key, tensor in made.tensors.items()}
    filled(made, 64)
    made.trim(1)
    assert {key: tensor.data_ptr() for key, tensor in made.tensors.items()} == before


@linux
def test_a_slot_takes_memory_when_it_is_written_and_all_but_one_spare_go_back():
    made, slot = rooms({KEY: torch.ones(1 << 20)}, 1000), 4 << 20
    start = resident_set()
    filled(made, 32)
    grown = resident_set() - start
    made.trim(2)
    left = resident_set() - start
    assert 31 * slot < grown < 34 * slot
    assert made.held == 3
    assert 2 * slot < left < 5 * slot


def resident_set():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_system_that_reserves_nothing_gets_copies(monkeypatch):
    def refuse(nbytes):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(module, "reserve", refuse)
    made = rooms(EXAMPLE, 64)
    assert isinstance(made, Doubling)
    assert intact(filled(made, 5), 5)


def test_tensors_without_elements_have_slots_all_the_same():
    made = rooms({KEY: torch.ones(0, 4), WIDE: torch.ones(2)}, 3)
    made.need(1)
    assert made.tensors[KEY][0].shape == (0, 4)
