"""The bank: contiguous stacks, pins, least recent use, exact bytes."""

import random

import pytest
import torch

from umbel.core.contract import Contract
from umbel.core.errors import AdapterRefused, Unavailable
from umbel.engine import rooms
from umbel.engine.dressing import Dresser
from umbel.engine.resident import make_resident
from umbel.engine.slots import Bank


@pytest.fixture
def resident(lab):
    """resident(seed, rank): an adapter ready for the bank, and what its stack must hold."""

    def make(seed, rank=4):
        digest = lab.adapter("lora", seed, rank=rank)
        made = make_resident(digest, lab.source.adapters[digest], lab.backbone)
        return made, {key: tensor.clone() for key, tensor in made.fused.items()}

    return make


def holds(resident, expected):
    return all(torch.equal(tensor[0], expected[key]) for key, tensor in resident.stack.alone(resident).items())


@pytest.mark.parametrize("can", [True, False], ids=["reserved", "doubling"])
def test_any_order_of_inserts_pins_and_evictions_keeps_every_adapter_in_its_slot(resident, monkeypatch, can):
    if not can:
        monkeypatch.setattr(rooms, "can_reserve", lambda device: False)
    rng, bank, content = random.Random(0), Bank(1 << 30), {}
    for step in range(200):
        residents = list(bank.residents.values())
        idle = [r for r in residents if not r.worn]
        action = rng.choice(["insert", "insert", "evict", "pin", "unpin"])
        if action == "insert" and len(residents) < 20:
            made, expected = resident(step, rank=rng.choice([2, 4]))
            bank.insert(made)
            content[made.digest] = expected
        elif action == "evict" and idle:
            bank.evict(rng.choice(idle))
        elif action == "pin" and residents:
            bank.pin(rng.choice(residents))
        elif action == "unpin" and (worn := [r for r in residents if r.worn]):
            bank.unpin(rng.choice(worn))
        for one in bank.residents.values():
            assert holds(one, content[one.digest])
        for stack in bank.stacks.values():
            assert [r.slot for r in stack.members] == list(range(len(stack.members)))
        assert bank.used == sum(r.nbytes for r in bank.residents.values())


def test_adapters_of_other_shapes_are_never_padded_together(resident):
    bank = Bank(1 << 30)
    for seed, rank in enumerate([2, 4, 2]):
        bank.insert(resident(seed, rank)[0])
    assert sorted(len(stack.members) for stack in bank.stacks.values()) == [1, 2]


def test_a_full_bank_evicts_the_least_recently_used_idle_adapter(resident):
    made = [resident(seed)[0] for seed in range(4)]
    bank = Bank(3 * made[0].nbytes)
    for one in made[:3]:
        bank.insert(one)
    bank.pin(made[0])
    bank.pin(made[1])
    bank.unpin(made[1])
    assert not bank.has_room(made[3].nbytes, evicting=False)
    bank.insert(made[3])
    assert made[0].digest in bank
    assert made[1].digest in bank
    assert made[2].digest not in bank


def test_pinned_adapters_are_never_room(resident):
    made = [resident(seed)[0] for seed in range(3)]
    bank = Bank(2 * made[0].nbytes)
    for one in made[:2]:
        bank.insert(one)
        bank.pin(one)
    assert not bank.has_room(made[2].nbytes, evicting=True)
    bank.unpin(made[0])
    assert bank.has_room(made[2].nbytes, evicting=True)


def test_worn_adapters_drift_to_the_front(resident):
    bank = Bank(1 << 30)
    made = [resident(seed)[0] for seed in range(10)]
    for one in made:
        bank.insert(one)
    for one in (made[9], made[4], made[7]):
        bank.pin(one)
    worn = sorted(one.slot for one in made if one.worn)
    assert worn[-1] - worn[0] < 6
    bank.pin(made[1])
    assert max(one.slot for one in made if one.worn) - min(one.slot for one in made if one.worn) < 10


def test_a_kept_layout_is_never_that_of_another_stack(resident):
    bank, dresser = Bank(1 << 30), Dresser(torch.device("cpu"))
    one, other = resident(0, rank=2)[0], resident(1, rank=4)[0]
    for made in (one, other):
        bank.insert(made)
    assert one.slot == other.slot
    for made in (one, one, other, one):
        assert dresser.dress([made], [], 2).parts[0].stack is made.stack.tensors


def test_memory_of_a_stack_shrinks_when_most_of_it_left(resident):
    bank = Bank(1 << 30)
    made = [resident(seed)[0] for seed in range(16)]
    for one in made:
        bank.insert(one)
    stack = made[0].stack
    for one in made[1:]:
        bank.evict(one)
    assert stack.rooms.held <= 4
    bank.evict(made[0])
    assert not bank.stacks
    assert bank.used == 0


def test_an_adapter_beyond_the_whole_budget_is_refused_with_both_numbers(resident):
    made = resident(0)[0]
    with pytest.raises(Unavailable, match=rf"{made.nbytes} bytes.*{made.nbytes - 1}"):
        Bank(made.nbytes - 1).insert(made)


def test_another_backbones_adapter_is_refused_with_both_fingerprints(lab):
    other = "sha256:" + "1" * 64
    adapter = lab.source.adapters[lab.adapter("lora", 1, fingerprint=other)]
    with pytest.raises(AdapterRefused, match=rf"{other}.*{lab.backbone.fingerprint}") as refused:
        make_resident(adapter.digest, adapter, lab.backbone)
    assert refused.value.code == "wrong_backbone"


def test_weights_that_are_not_finite_are_refused(lab):
    adapter = lab.source.adapters[lab.adapter("lora", 1)]
    next(iter(adapter.weights.tensors.values()))[0, 0] = float("nan")
    with pytest.raises(AdapterRefused, match="NaN"):
        make_resident(adapter.digest, adapter, lab.backbone)


def test_residents_take_the_backbones_dtype_but_scales_stay_wide(bf16, lab):
    lab.backbone = bf16
    dtypes = {}
    for method in ("lora", "ia3"):
        digest = lab.adapter(method, 1)
        made = make_resident(digest, lab.source.adapters[digest], bf16)
        dtypes[method] = {tensor.dtype for tensor in made.fused.values()}
    assert dtypes == {"lora": {torch.bfloat16}, "ia3": {torch.float32}}


def test_adapters_with_and_without_an_output_head_of_their_own_share_a_stack_to_the_last_byte(lab, resident):
    """The first of a stack may be larger than those that follow, so there may be more of them than of the first."""
    labelled = lab.adapter("lora", 0, rank=4, contract=Contract(output_head="classify", labels=["a", "b"]))
    first = make_resident(labelled, lab.source.adapters[labelled], lab.backbone)
    others = [resident(seed)[0] for seed in range(1, 200)]
    bank = Bank(first.nbytes + sum(other.nbytes for other in others))
    for one in (first, *others):
        bank.insert(one)
    assert len(bank.residents) == 200
    assert len(first.stack.members) == 200


@pytest.mark.parametrize("anywhere", [True, False], ids=["by a kernel", "side by side"])
def test_a_newcomer_takes_the_slot_of_one_that_leaves(resident, anywhere):
    made = [resident(seed) for seed in range(6)]
    bank = Bank(4 * made[0][0].nbytes, reads_anywhere=lambda stack: anywhere)
    content = {}
    for number, (one, expected) in enumerate(made):
        content[one.digest] = expected
        bank.insert(one)
        bank.pin(one)
        if number != 1:  # the second one stays worn
            bank.unpin(one)
        assert bank.used == sum(each.nbytes for each in bank.residents.values()) <= bank.budget
        assert all(holds(each, content[each.digest]) for each in bank.residents.values())
    (stack,) = bank.stacks.values()
    assert [one.slot for one in stack.members] == list(range(4))
    assert stack.members[1] is made[1][0]
    assert [gone.stack for gone, _ in (made[0], made[2])] == [None, None]


def test_what_a_kernel_reads_by_its_address_stays_where_it_is(resident):
    for anywhere, slot in ((True, 3), (False, 1)):
        bank = Bank(1 << 30, reads_anywhere=lambda stack, anywhere=anywhere: anywhere)
        made = [resident(seed)[0] for seed in range(4)]
        for one in made:
            bank.insert(one)
        bank.pin(made[0])
        bank.pin(made[3])
        assert (made[0].slot, made[3].slot) == (0, slot)


def test_one_of_another_shape_makes_room_too_and_leaves_no_hole(resident):
    small, large = [resident(seed, rank=2) for seed in range(4)], resident(9, rank=4)
    bank = Bank(4 * small[0][0].nbytes)
    for one, _ in small:
        bank.insert(one)
    bank.insert(large[0])
    assert sorted(one.digest for one in bank.residents.values()) == sorted(one.digest for one, _ in [*small[2:], large])
    assert holds(*large)
    assert all(holds(one, expected) for one, expected in small[2:])
    newest = resident(7, rank=2)
    bank.insert(newest[0])  # small[2] leaves its slot, small[3] stays
    assert all(holds(one, expected) for one, expected in [small[3], newest, large])
