"""Correctness rule 3: many adapters together learn exactly what each learns alone, in float64 to 1e-10."""

import itertools
from dataclasses import replace

import pytest

from umbel.training.passes import Packing

EXACT = 1e-10


@pytest.fixture
def alone(tasks, train):
    return {name: train(task)[0] for name, task in tasks.items()}


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_subset_in_any_order_learns_what_each_learns_alone(tasks, alone, train, furthest, size):
    orders = list(itertools.permutations(tasks, size))
    for order in orders[:: max(1, len(orders) // 5)]:
        for found in train(*(tasks[name] for name in order)):
            assert furthest(found, alone[found.task.name]) < EXACT, order
            assert found.losses == pytest.approx(alone[found.task.name].losses, abs=EXACT)
            assert found.history == alone[found.task.name].history or found.best.loss == pytest.approx(
                alone[found.task.name].best.loss, abs=EXACT
            )


def test_the_tasks_move_far_more_than_the_tolerance(tasks, alone, train, furthest):
    for name, task in tasks.items():
        barely = train(replace(task, lr=1e-12))[0]
        assert furthest(barely, alone[name]) > 1e-3, name


def test_dropout_is_on_in_these_tests(tasks, alone, train, furthest):
    for name in ("speech", "mood"):
        without = replace(tasks[name], options={**tasks[name].options, "dropout": 0.0}, head_dropout=0.0)
        assert furthest(train(without)[0], alone[name]) > 1e-3


def test_one_batch_of_eight_is_eight_micro_batches_of_one(tasks, train, furthest):
    for task in tasks.values():
        whole = train(replace(task, batch_size=8, micro_batch=None))[0]
        crumbs = train(replace(task, batch_size=8, micro_batch=1))[0]
        assert furthest(whole, crumbs) < EXACT, task.name


def test_padding_and_the_order_of_rows_in_a_pass_change_nothing(tasks, train, furthest):
    bucketed = train(*tasks.values())
    for packing in (Packing(bucket=False), Packing(tokens=40), Packing(bucket=False, tokens=90)):
        for one, other in zip(bucketed, train(*tasks.values(), packing=packing), strict=True):
            assert furthest(one, other) < EXACT, packing


@pytest.mark.parametrize("checkpointing", ["full", "every=2", "selective"])
def test_recomputed_activations_give_the_same_weights(tasks, train, furthest, checkpointing):
    again = train(*tasks.values(), checkpointing=checkpointing)
    for one, other in zip(train(*tasks.values()), again, strict=True):
        assert furthest(one, other) < EXACT


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("prefix", {"length": 3}),
        ("prefix", {"length": 3, "projection": True}),
        ("prompt", {"length": 3, "init_text": "spell it"}),
        ("p_tuning", {"length": 3}),
        ("bottleneck", {}),
        ("lora", {"rank": 2, "dora": True, "dropout": 0.1}),
        ("lora", {"rank": 2, "targets": ("q_proj", "lm_head"), "dropout": 0.1}),
        ("lora", {"rank": 2, "targets": ("q_proj", "embed_tokens"), "bias": "all", "lora_bias": True}),
        ("lora", {"rank": 2, "token_rows": (97, 101, 110), "lm_head_rows": (97, 98)}),
        ("lora", {"rank": 2, "full_copies": ("embed_tokens", "lm_head")}),
    ],
)
def test_every_method_learns_together_what_it_learns_alone(tasks, train, furthest, task, method, options):
    from_rows = tasks["speech"]
    mine = replace(from_rows, name="mine", method=method, options=options)
    alone = train(mine)[0]
    together = train(tasks["mood"], mine, tasks["height"])[1]
    assert furthest(alone, together) < EXACT
    assert alone.losses[-1] != alone.losses[0]


def test_single_precision_losses_agree_to_1e_5(tasks, backbone, settings):
    from umbel.training import fit

    together = fit(backbone, list(tasks.values()), settings=settings)
    for found in together:
        alone = fit(backbone, [found.task], settings=settings)[0]
        assert found.losses == pytest.approx(alone.losses, abs=1e-5)


@pytest.mark.parametrize("packing", [Packing(), Packing(tokens=40)])
def test_a_task_that_explodes_leaves_and_its_mates_learn_as_alone(tasks, alone, train, furthest, task, packing):
    # its rows are the shortest, so with small passes it explodes after its mates' gradients of the step are in
    rows = [{"text": "ab"[i % 2], "label": "xy"[i % 2]} for i in range(40)]
    bomb = task(rows, name="bomb", task="classify", lr=1e200, steps=6, validation_fraction=0, test_fraction=0)
    found = train(tasks["speech"], bomb, tasks["mood"], packing=packing)
    assert found[1].adapter is None
    assert found[1].error.code == "not_finite"
    assert "bomb" in found[1].error.message
    assert furthest(found[0], alone["speech"]) < EXACT
    assert furthest(found[2], alone["mood"]) < EXACT


def test_a_task_with_bad_data_leaves_before_the_first_step(tasks, alone, train, furthest):
    lost = replace(tasks["topic"], name="lost", data="/nowhere/rows.jsonl")
    found = train(lost, tasks["speech"])
    assert found[0].adapter is None
    assert found[0].error.code == "data_not_found"
    assert furthest(found[1], alone["speech"]) < EXACT


def test_where_every_task_fails_the_reason_is_raised(tasks, train):
    from umbel.core.errors import NotFound

    with pytest.raises(NotFound, match="nowhere"):
        train(replace(tasks["topic"], data="/nowhere/rows.jsonl"))
