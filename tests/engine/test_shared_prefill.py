"""Adapters that change nothing below their output heads, asked together: the text is read once, the rest is apart."""

import pytest
import torch

from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import Conflict, NotFound, Overloaded
from umbel.engine import PoolRequest, Usage

TEXT = "one text, read once for all of its heads"
HEADS = ("classify", "regress", "tag", "embed")


def contract(head):
    return Contract(output_head=OutputHead(head), labels=("a", "b", "c") if head in ("classify", "tag") else ())


def head_only(lab, count=4):
    """Adapters of method ``none``, the output heads in turn."""
    return [lab.adapter("none", 10 + i, contract=contract(HEADS[i % 4])) for i in range(count)]


def together(lab, adapters, text=TEXT, **settings):
    return [lab.pool(text, adapter, **settings) for adapter in adapters]


def warmed(lab, adapters, **options):
    """An engine in which they are resident, and how many prompt tokens it has read so far."""
    engine = lab.engine(**options)
    asked = [engine.warm(adapter) for adapter in adapters]
    lab.drain(engine)
    assert all(done.result() for done in asked)
    return engine


def alone(lab, requests):
    return [lab.run(lab.engine(), [request])[0].logits for request in requests]


def ask(lab, engine, requests):
    handles = engine.submit_together(requests)
    lab.drain(engine)
    return [handle.result() for handle in handles]


def expect(lab, logits, expected):
    tolerance = 0.0 if lab.backbone.dtype == torch.bfloat16 else 2e-4
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def test_the_decoder_reads_the_text_once_for_every_head(any_lab, monkeypatch):
    adapters, read = head_only(any_lab), []
    engine = warmed(any_lab, adapters)
    forward = engine._forward
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", lambda plan: read.append(plan.tokens) or forward(plan))
        answers = ask(any_lab, engine, together(any_lab, adapters))
    assert sum(read) == engine.stats().prompt_tokens == len(TEXT)
    assert engine.stats().finished == {"stop": 4}
    assert [answer.finished.usage for answer in answers] == [Usage(len(TEXT), 0)] * 4


@pytest.mark.parametrize("step_tokens", [16, 256])
def test_every_head_answers_as_asked_singly(any_lab, step_tokens):
    adapters = head_only(any_lab, 8)
    requests = together(any_lab, adapters)
    engine = warmed(any_lab, adapters, step_tokens=step_tokens)
    mates = [engine.submit(any_lab.ask("a neighbour", adapter)) for adapter in any_lab.zoo()[:4]]
    answers = ask(any_lab, engine, requests)
    for answer, expected in zip(answers, alone(any_lab, requests), strict=True):
        expect(any_lab, answer.logits, expected)
    assert [answer.logits.shape for answer in answers[:3]] == [(3,), (1,), (len(TEXT), 3)]
    assert all(mate.result().ids for mate in mates)


def test_the_heads_answers_differ_so_that_a_mix_up_would_show(lab):
    adapters = [lab.adapter("none", seed, contract=contract("classify")) for seed in range(3)]
    logits = [answer.logits for answer in ask(lab, warmed(lab, adapters), together(lab, adapters))]
    for i in range(3):
        assert (logits[i] - logits[i - 1]).abs().max() > 10 * 2e-4


def test_a_method_below_the_head_reads_for_itself(any_lab):
    lora, prefix = any_lab.classifier(1, rank=4), any_lab.classifier(2, "prefix", length=3)
    adapters = [lora, *head_only(any_lab, 2), prefix]
    requests = together(any_lab, adapters)
    engine = warmed(any_lab, adapters)
    for answer, expected in zip(ask(any_lab, engine, requests), alone(any_lab, requests), strict=True):
        expect(any_lab, answer.logits, expected)
    assert engine.stats().prompt_tokens == 3 * len(TEXT)


def test_texts_that_differ_by_the_template_are_read_apart(lab):
    adapters = head_only(lab, 2)
    requests = [lab.pool(TEXT, adapters[0]), lab.pool(f"Q: {TEXT}", adapters[1])]
    engine = warmed(lab, adapters)
    for answer, expected in zip(ask(lab, engine, requests), alone(lab, requests), strict=True):
        expect(lab, answer.logits, expected)
    assert engine.stats().prompt_tokens == 2 * len(TEXT) + 3


def test_requests_that_came_apart_are_read_apart(lab):
    adapters = head_only(lab, 2)
    engine = warmed(lab, adapters)
    lab.run(engine, together(lab, adapters))
    assert engine.stats().prompt_tokens == 2 * len(TEXT)


def test_cold_adapters_wait_for_each_others_loads_and_share_too(lab):
    engine = lab.engine()
    ask(lab, engine, together(lab, head_only(lab, 20)))
    assert engine.stats().prompt_tokens == len(TEXT)
    assert len(lab.source.fetched) == 20


def test_a_generating_row_of_the_same_tokens_is_no_part_of_it(lab):
    adapters = [*head_only(lab, 1), lab.adapter("none", 9)]
    engine = warmed(lab, adapters)
    pooled, written = ask(lab, engine, [lab.pool(TEXT, adapters[0]), lab.ask(TEXT, adapters[1])])
    assert engine.stats().prompt_tokens == 2 * len(TEXT)
    expect(lab, pooled.logits, alone(lab, [lab.pool(TEXT, adapters[0])])[0])
    lab.same(written, lab.run(lab.engine(), [lab.ask(TEXT)])[0])


@pytest.mark.parametrize("leaves", [(0,), (1,), (0, 1), (3,), (0, 3), (0, 1, 2)])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_one_that_leaves_in_the_middle_does_not_hurt_the_others(any_lab, leaves, how):
    adapters = head_only(any_lab)
    engine = warmed(any_lab, adapters, step_tokens=16)
    late = [7.0 if how == "deadline" and i in leaves else None for i in range(4)]
    requests = [any_lab.pool(TEXT, adapter, deadline=by) for adapter, by in zip(adapters, late, strict=True)]
    handles = engine.submit_together(requests)
    engine.step()
    assert not any(handle.done for handle in handles)
    any_lab.now = 8.0
    for i in leaves:
        if how == "cancel":
            handles[i].cancel()
    engine.step()
    assert engine.stats().adapters_worn == 4 - len(leaves)
    any_lab.drain(engine)
    for i, (handle, expected) in enumerate(zip(handles, alone(any_lab, together(any_lab, adapters)), strict=True)):
        if i in leaves:
            assert list(handle)[-1].reason == {"cancel": "cancelled", "deadline": "error"}[how]
        else:
            expect(any_lab, handle.result().logits, expected)
    assert engine.stats().prompt_tokens == len(TEXT)
    assert not engine.scheduler.running.rows
    assert engine.scheduler.running.reserved == engine.stats().adapters_worn == 0


def test_all_that_leave_free_the_row_and_its_memory(lab):
    adapters = head_only(lab)
    engine = warmed(lab, adapters, step_tokens=16)
    handles = engine.submit_together(together(lab, adapters))
    engine.step()
    for handle in handles:
        handle.cancel()
    lab.drain(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_bytes_reserved, stats.adapters_worn) == (0, 0, 0, 0)
    assert stats.prompt_tokens == 16


def test_all_are_pinned_while_the_row_runs(lab):
    adapters = head_only(lab)
    engine = warmed(lab, adapters, step_tokens=16, adapter_bytes=1 << 12)
    handles = engine.submit_together(together(lab, adapters))
    engine.step()
    assert engine.stats().adapters_worn == 4
    refused = [engine.unload(adapter) for adapter in adapters]
    pushy = engine.submit(lab.pool("another", lab.adapter("none", 99, contract=contract("classify"))))
    engine.step()
    assert all(isinstance(asked.exception(), Conflict) for asked in refused)
    assert set(adapters) <= set(engine.stats().adapters)
    lab.drain(engine)
    assert all(handle.result().logits.isfinite().all() for handle in [*handles, pushy])


def test_a_bank_too_small_for_all_serves_those_that_fit_together(lab):
    adapters = [lab.adapter("none", i, contract=contract("classify")) for i in range(6)]
    one = sum(tensor.nbytes for tensor in lab.source.adapters[adapters[0]].tensors.values())
    engine = lab.engine(adapter_bytes=2 * one)
    requests = together(lab, adapters)
    for answer, expected in zip(ask(lab, engine, requests), alone(lab, requests), strict=True):
        expect(lab, answer.logits, expected)
    assert len(TEXT) < engine.stats().prompt_tokens < 6 * len(TEXT)


def test_a_load_that_fails_fails_alone(lab):
    adapters, broken = head_only(lab, 2), lab.adapter("none", 50, contract=contract("classify"))
    lab.source.broken[broken] = NotFound("its files are gone.", code="file_missing")
    engine = lab.engine()
    handles = engine.submit_together(together(lab, [adapters[0], broken, adapters[1]]))
    lab.drain(engine)
    assert list(handles[1])[-1].error.code == "file_missing"
    for handle, expected in zip(handles[::2], alone(lab, together(lab, adapters)), strict=True):
        expect(lab, handle.result().logits, expected)
    assert engine.stats().prompt_tokens == len(TEXT)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_head_that_is_not_finite_fails_alone(lab, place):
    adapters = head_only(lab, 2)
    wild = lab.adapter("none", 51, contract=contract("classify"))
    lab.source.adapters[wild].head.tensors["score.weight"].fill_(3e38)
    order = [*adapters[:place], wild, *adapters[place:]]
    engine = warmed(lab, order)
    handles = engine.submit_together(together(lab, order))
    lab.drain(engine)
    bad = handles.pop(place)
    assert [event.error.code for event in bad] == ["non_finite_output"]
    for handle, expected in zip(handles, alone(lab, together(lab, adapters)), strict=True):
        expect(lab, handle.result().logits, expected)


def test_failing_everything_in_the_middle_leaves_a_clean_engine(lab):
    adapters = head_only(lab)
    engine = warmed(lab, adapters, step_tokens=16)
    handles = engine.submit_together(together(lab, adapters))
    engine.step()
    engine.fail_all(NotFound("gone.", code="gone"))
    assert [list(handle)[-1].error.code for handle in handles] == ["gone"] * 4
    assert (engine.stats().running, engine.stats().adapters_worn, engine.stats().kv_bytes_reserved) == (0, 0, 0)
    again = together(lab, adapters)
    for answer, expected in zip(ask(lab, engine, again), alone(lab, again), strict=True):
        expect(lab, answer.logits, expected)


def test_one_adapter_under_two_names_is_answered_twice(lab):
    (adapter,) = head_only(lab, 1)
    engine = warmed(lab, [adapter])
    one, other = ask(lab, engine, together(lab, [adapter, adapter]))
    assert torch.equal(one.logits, other.logits)
    assert engine.stats().prompt_tokens == len(TEXT)


def test_a_queue_without_room_for_all_takes_none(lab):
    engine = lab.engine(max_waiting=3)
    with pytest.raises(Overloaded, match="0 requests wait already, the limit is 3"):
        engine.submit_together(together(lab, head_only(lab)))
    assert engine.stats().waiting == 0
    assert len(ask(lab, engine, together(lab, head_only(lab, 3)))) == 3


def test_a_quiet_adapter_gets_its_turn_beside_shared_rows(lab):
    """Each of the four has led one group, which is a turn, before the fifth adapter has its own."""
    adapters, quiet = head_only(lab), lab.classifier(1, rank=4)
    engine = warmed(lab, [*adapters, quiet], max_rows=1)
    groups = [engine.submit_together(together(lab, adapters, f"{TEXT} {i}")) for i in range(10)]
    single = engine.submit(PoolRequest(tokens=lab.tokens("me"), adapter=quiet))
    while not single.done:
        engine.step()
    assert sum(handle.done for group in groups for handle in group) <= 16
    lab.drain(engine)
    assert all(handle.result().logits is not None for group in groups for handle in group)
