"""A row never feels its neighbours: whoever shares its steps, its answer is that of its own solo run."""

import random

import pytest
import torch

from umbel.engine.selfcheck import check_rows

TEXTS = ["a", "the quick brown fox", "hello " * 9, "0123456789" * 4, "zz"]


def requests_for(lab, adapters, count):
    return [lab.ask(TEXTS[i % len(TEXTS)] + str(i), adapters[i % len(adapters)]) for i in range(count)]


def solo(lab, requests):
    """Each request in an engine of its own."""
    return [lab.run(lab.engine(), [request])[0] for request in requests]


def test_bf16_is_bit_equal_here_and_the_tests_below_demand_it(bf16):
    assert check_rows(bf16).bit_equal


def test_every_adapter_of_the_zoo_changes_the_answer(any_lab):
    *adapters, bare = any_lab.zoo()
    plain = any_lab.run(any_lab.engine(), [any_lab.ask("hello", bare)])[0]
    for answer in any_lab.run(any_lab.engine(), [any_lab.ask("hello", adapter) for adapter in adapters]):
        assert abs(answer.tokens[0].logprob - plain.tokens[0].logprob) > 10 * 2e-4


def test_sixteen_rows_over_ten_kinds_answer_as_each_alone(any_lab):
    requests = requests_for(any_lab, any_lab.zoo(), 16)
    for together, alone in zip(any_lab.run(any_lab.engine(), requests), solo(any_lab, requests), strict=True):
        any_lab.same(together, alone)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_order_and_any_number_of_rows_gives_the_same_answers(any_lab, seed):
    requests = requests_for(any_lab, any_lab.zoo(), 16)
    reference = any_lab.run(any_lab.engine(), requests)
    rng = random.Random(seed)
    order = rng.sample(range(16), 16)
    engine = any_lab.engine(max_rows=rng.randint(1, 7), step_tokens=rng.choice([1, 20, 64, 500]))
    for index, answer in zip(order, any_lab.run(engine, [requests[i] for i in order]), strict=True):
        any_lab.same(answer, reference[index])


def test_loading_and_evicting_others_meanwhile_changes_nothing(any_lab):
    requests = requests_for(any_lab, any_lab.zoo(), 16)
    alone = solo(any_lab, requests)
    engine = any_lab.engine(max_rows=16)
    handles = [engine.submit(request) for request in requests]
    others = [any_lab.adapter("lora", 100 + i, rank=4) for i in range(8)]
    guests = []
    while engine.step():
        for idle in [r for r in engine.bank.residents.values() if not r.worn]:
            engine.bank.evict(idle)
        if others:
            guests.append(engine.submit(any_lab.ask("guest", others.pop(), max_tokens=2)))
    assert engine.stats().evictions >= 8
    assert all(len(guest.result().ids) == 2 for guest in guests)
    for handle, reference in zip(handles, alone, strict=True):
        any_lab.same(handle.result(), reference)


def test_what_freed_slots_hold_reaches_nobody(any_lab):
    requests = requests_for(any_lab, any_lab.zoo(), 16)
    reference = any_lab.run(any_lab.engine(), requests)
    engine = any_lab.engine(max_rows=6)
    handles = [engine.submit(request) for request in requests]
    any_lab.poison(engine)
    while engine.step():
        any_lab.poison(engine)
    for handle, expected in zip(handles, reference, strict=True):
        any_lab.same(handle.result(), expected)


@pytest.mark.parametrize("step_tokens", [1, 7, 17, 33])
def test_a_prompt_cut_anywhere_answers_as_a_whole_one(any_lab, step_tokens, monkeypatch):
    monkeypatch.setattr("umbel.engine.running.LEAST_CHUNK", 1)
    requests = [any_lab.ask("a longer prompt that is cut into chunks", adapter) for adapter in any_lab.zoo()]
    cut = any_lab.engine(step_tokens=step_tokens)
    for one, other in zip(any_lab.run(cut, requests), any_lab.run(any_lab.engine(), requests), strict=True):
        any_lab.same(one, other)
    assert cut.stats().steps > 11


def test_a_row_whose_output_is_not_finite_fails_alone(any_lab):
    bad = any_lab.adapter("lora", 66, rank=4, scale=1e30)
    good = requests_for(any_lab, any_lab.zoo(), 6)
    reference = any_lab.run(any_lab.engine(), good)
    engine = any_lab.engine(max_rows=4)
    handles = [engine.submit(request) for request in [good[0], any_lab.ask("x" * 100, bad), *good[1:]]]
    any_lab.drain(engine)
    events = list(handles.pop(1))
    assert [event.error.code for event in events] == ["non_finite_output"]
    for handle, expected in zip(handles, reference, strict=True):
        any_lab.same(handle.result(), expected)
    assert engine.scheduler.running.cache.slabs.isfinite().all()


def test_no_product_is_ever_of_a_lone_row(any_lab):
    """But by the kernels, where no product knows how many rows there are."""
    sizes = []

    def note(module, args):
        tokens, step = args
        sizes.append((len(tokens), 2 if step.want is None else len(step.want)))

    hook = any_lab.backbone.decoder.register_forward_pre_hook(note)
    any_lab.run(any_lab.engine(), [any_lab.ask("x")])
    any_lab.run(any_lab.engine(step_tokens=16), [any_lab.pool("x" * 17, any_lab.classifier(1))])
    hook.remove()
    assert bool(sizes) == (not any_lab.engine()._alone), "the kernels have a way of their own"
    assert {min(batch, wanted, 2) for batch, wanted in sizes} <= {2}


def test_a_classification_is_the_same_beside_generating_rows(any_lab):
    classifier, tokens = any_lab.classifier(1, rank=4), any_lab.pool("what a day", any_lab.classifier(2, "prefix"))
    pools = [any_lab.pool("what a day", classifier), tokens, any_lab.pool("no", classifier)]
    alone = [any_lab.run(any_lab.engine(), [request])[0].logits for request in pools]
    engine = any_lab.engine(step_tokens=24)
    mixed = any_lab.run(engine, [*requests_for(any_lab, any_lab.zoo(), 6), *pools])[6:]
    for answer, expected in zip(mixed, alone, strict=True):
        assert answer.logits.shape == (3,)
        tolerance = 0.0 if any_lab.backbone.dtype == torch.bfloat16 else 2e-4
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=tolerance)
