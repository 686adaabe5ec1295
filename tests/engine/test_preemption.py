"""Rows that make room: saved as they are, put back in order, and nothing about their answers changes."""

import pytest
import torch

from umbel.core.errors import Conflict


def engine_of(lab, tokens, **options):
    """An engine whose running rows hold at most so many tokens, most of which writes twice what it reads."""
    return lab.engine(kv_bytes=tokens * lab.backbone.kv_bytes_per_token, **{"max_length": tokens} | options)


def requests_of(lab, count=10, **settings):
    zoo = lab.zoo()
    return [lab.ask("x" * (10 + 3 * i), zoo[i % len(zoo)], max_tokens=60 + i, **settings) for i in range(count)]


def test_making_room_changes_no_token(any_lab):
    requests = requests_of(any_lab)
    alone = [any_lab.run(any_lab.engine(), [request])[0] for request in requests]
    engine = engine_of(any_lab, 260, saved_bytes=1 << 30)
    handles = [engine.submit(request) for request in requests]
    while engine.step():
        any_lab.poison(engine)
    assert engine.stats().preemptions >= 2
    for handle, expected in zip(handles, alone, strict=True):
        any_lab.same(handle.result(), expected)


def test_making_room_changes_no_draw(lab):
    requests = [lab.ask("x" * 20, None, max_tokens=80, temperature=1.0, seed=i) for i in range(6)]
    engine = engine_of(lab, 220)
    for one, other in zip(lab.run(engine, requests), lab.run(lab.engine(), requests), strict=True):
        lab.same(one, other)
    assert engine.stats().preemptions


def test_a_prompt_that_makes_room_is_read_on_where_it_was(any_lab):
    """Its hidden states so far, which an output head will read, are kept too."""
    first = any_lab.ask("a" * 20, max_tokens=150)
    second = any_lab.pool("b" * 150, any_lab.classifier(3, "prefix", length=3))
    expected = any_lab.run(any_lab.engine(), [second])[0].logits
    engine = engine_of(any_lab, 221, saved_bytes=1 << 30, step_tokens=17)
    handles, seen = [engine.submit(first)], False
    while engine.stats().steps < 25:
        engine.step()
    handles.append(engine.submit(second))
    while engine.step():
        seen = seen or any(row.prefilling and row.done for row in engine.scheduler.running.preempted)
        any_lab.poison(engine)
    assert seen
    torch.testing.assert_close(handles[1].result().logits, expected, rtol=0, atol=any_lab.tolerance)


def test_memory_stays_within_its_bounds_at_every_step(lab):
    engine = engine_of(lab, 200, saved_bytes=150 * lab.backbone.kv_bytes_per_token)
    handles = [engine.submit(request) for request in requests_of(lab)]
    running = engine.scheduler.running
    while engine.step():
        assert running.held == sum(row.held for row in running.rows)
        assert all(row.used <= row.held for row in running.rows)
        assert running.held + running.prefixes.tokens <= 200
        assert running.reserved <= 350
        assert running.saved <= 150 + 200
    assert engine.stats().preemptions
    assert (running.held, running.reserved, running.saved) == (0, 0, 0)
    assert all(handle.result().finished.reason == "length" for handle in handles)


def test_without_memory_for_saved_rows_none_ever_makes_room(lab):
    engine = engine_of(lab, 260, saved_bytes=0)
    lab.run(engine, requests_of(lab))
    assert engine.stats().preemptions == 0


def test_the_row_that_came_first_never_makes_room_and_saved_rows_come_before_new_ones(lab):
    engine = engine_of(lab, 220)
    handles = [engine.submit(lab.ask(letter * 20, max_tokens=100)) for letter in "abcd"]
    running = engine.scheduler.running
    while engine.step():
        assert all(row.number < saved.number for row in running.rows for saved in running.preempted)
    assert engine.stats().preemptions
    assert all(len(handle.result().ids) == 100 for handle in handles)


def _warm(engine, *digests):
    """Else a slow load would let the first row end before the others begin."""
    warmed = [engine.warm(digest) for digest in digests]
    while not all(future.done() for future in warmed):
        engine.step()


def _until_somebody_is_saved(engine):
    while not engine.scheduler.running.preempted:
        assert engine.step()
    return engine.scheduler.running.preempted[0]


def test_a_saved_row_can_be_cancelled(lab):
    adapter, engine = lab.adapter("lora", 1, rank=4), engine_of(lab, 220)
    handles = [engine.submit(lab.ask(letter * 20, adapter, max_tokens=100)) for letter in "abcd"]
    row = _until_somebody_is_saved(engine)
    row.handle.cancel()
    engine.step()
    assert row.handle.done
    assert row.saved is None
    lab.drain(engine)
    stats = engine.stats()
    assert (stats.kv_bytes_saved, stats.kv_bytes_reserved, stats.rows_preempted, stats.adapters_worn) == (0, 0, 0, 0)
    assert sorted(list(handle)[-1].reason for handle in handles) == ["cancelled", "length", "length", "length"]


def test_a_saved_row_keeps_its_adapter(lab):
    adapter, engine = lab.adapter("lora", 1, rank=4), engine_of(lab, 220)
    _warm(engine, adapter)
    first = engine.submit(lab.ask("a" * 20, max_tokens=150))
    second = engine.submit(lab.ask("b" * 20, adapter, max_tokens=150))
    assert _until_somebody_is_saved(engine).handle is second
    unloaded = engine.unload(adapter)
    engine.step()
    with pytest.raises(Conflict, match="worn or awaited by 1"):
        unloaded.result(0)
    lab.drain(engine)
    for handle in (first, second):
        lab.same(handle.result(), lab.run(lab.engine(), [handle.request])[0])


def test_whoever_rides_on_a_saved_row_reads_on_when_its_leader_is_cancelled(lab):
    heads = [lab.classifier(seed, "none") for seed in (1, 2)]
    requests = [lab.pool("b" * 150, head) for head in heads]
    expected = lab.run(lab.engine(), [requests[1]])[0].logits
    engine = engine_of(lab, 221, step_tokens=17)
    _warm(engine, *heads)
    before = engine.stats().steps
    engine.submit(lab.ask("a" * 20, max_tokens=150))
    while engine.stats().steps < before + 25:
        engine.step()
    handles = engine.submit_together(requests)
    row = _until_somebody_is_saved(engine)
    assert row.prefilling
    assert [rider.handle for rider in row.riders] == [handles[1]]
    handles[0].cancel()
    lab.drain(engine)
    assert list(handles[0])[-1].reason == "cancelled"
    torch.testing.assert_close(handles[1].result().logits, expected, rtol=0, atol=lab.tolerance)
    assert (engine.scheduler.running.held, engine.scheduler.running.reserved) == (0, 0)
