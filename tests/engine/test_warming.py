"""Adapters that are loaded and dropped by hand, beside the step."""

import asyncio

import pytest

from umbel.core.errors import Conflict, NotFound, Unavailable
from umbel.engine import EngineThread

MISSING = "sha256:" + "0" * 64


def settle(lab, engine, future):
    """The result of what was asked, once the engine has nothing left to do."""
    lab.drain(engine)
    assert future.done()
    return future.result(0)


def sized(lab, count, **options):
    """An engine with room for so many adapters of one size, and one more adapter than that."""
    digests = [lab.adapter("lora", seed, rank=4) for seed in range(count + 1)]
    probe = lab.engine()
    settle(lab, probe, probe.warm(digests[0]))
    return lab.engine(adapter_bytes=count * probe.bank.used, **options), digests


def test_a_warm_adapter_is_resident_before_anybody_asks_and_answers_as_a_cold_one(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    assert settle(lab, engine, engine.warm(digest))
    assert engine.stats().adapters == (digest,)
    warm, cold = (lab.run(one, [lab.ask("hello", digest)])[0] for one in (engine, lab.engine()))
    lab.same(warm, cold)
    assert lab.source.fetched == [digest, digest], "one load for each engine"
    assert warm.finished.timing.load_ms == 0.0


def test_what_is_resident_already_is_not_loaded_again(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    assert settle(lab, engine, engine.warm(digest))
    assert not settle(lab, engine, engine.warm(digest))
    assert lab.source.fetched == [digest]


def test_two_who_ask_at_once_share_one_load(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    both = [engine.warm(digest), engine.warm(digest)]
    lab.drain(engine)
    assert [one.result(0) for one in both] == [True, True]
    assert lab.source.fetched == [digest]


def test_warming_takes_the_slot_of_the_one_that_was_used_longest_ago(lab):
    engine, (old, used, new) = sized(lab, 2)
    for digest in (old, used, old):
        settle(lab, engine, engine.warm(digest))
    settle(lab, engine, engine.warm(new))
    assert set(engine.stats().adapters) == {old, new}


def test_warming_waits_for_a_slot_while_every_adapter_is_worn(lab):
    engine, (worn, later) = sized(lab, 1)
    handle = engine.submit(lab.ask("hello", worn, max_tokens=200))
    engine.step()
    while not handle.done and engine.stats().running == 0:
        engine.step()
    future = engine.warm(later)
    while not engine.scheduler.loader.ready:
        assert not handle.done
        engine.step()
    assert not future.done()
    assert settle(lab, engine, future)
    assert handle.result().ids
    assert engine.stats().adapters == (later,)


@pytest.mark.parametrize(
    ("error", "code"), [(NotFound("none", code="version_not_found"), "version_not_found"), (OSError("x"), None)]
)
def test_a_load_that_fails_is_told_and_nothing_else_suffers(lab, error, code):
    good, bad, engine = lab.adapter("lora", 1), lab.adapter("lora", 2), lab.engine()
    lab.source.broken[bad] = error
    failing, fine = engine.warm(bad), engine.warm(good)
    lab.drain(engine)
    assert failing.exception(0).code == (code or "adapter_load_failed")
    assert fine.result(0)


def test_an_adapter_that_can_never_fit_is_told_with_both_numbers(lab):
    engine = lab.engine(adapter_bytes=1000)
    future = engine.warm(lab.adapter("lora", 1))
    lab.drain(engine)
    assert future.exception(0).code == "adapter_too_large"
    assert engine.stats().adapters_loading == 0


def test_a_wish_that_is_given_up_leaves_no_trace(lab):
    engine, (kept, wished) = sized(lab, 1)
    settle(lab, engine, engine.warm(kept))
    future = engine.warm(wished)
    assert future.cancel()
    lab.drain(engine)
    engine.scheduler.loader._pool.submit(int).result(30)
    lab.drain(engine)
    assert engine.stats().adapters == (kept,)


def test_unloading_frees_the_memory_and_the_next_request_loads_anew(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    settle(lab, engine, engine.warm(digest))
    assert settle(lab, engine, engine.unload(digest))
    assert (engine.stats().adapters, engine.stats().adapter_bytes) == ((), 0)
    assert lab.run(engine, [lab.ask("hello", digest)])[0].ids
    assert lab.source.fetched == [digest, digest]


def test_unloading_what_is_not_there_changes_nothing(lab):
    engine = lab.engine()
    assert not settle(lab, engine, engine.unload(MISSING))


def test_an_adapter_that_a_row_wears_stays_and_the_row_is_not_disturbed(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    handle = engine.submit(lab.ask("hello", digest))
    while engine.stats().running == 0:
        engine.step()
    future = engine.unload(digest)
    engine.step()
    error = future.exception(0)
    assert isinstance(error, Conflict)
    assert (error.code, error.retry_after) == ("adapter_in_use", 1.0)
    lab.drain(engine)
    lab.same(handle.result(), lab.run(lab.engine(), [lab.ask("hello", digest)])[0])
    assert settle(lab, engine, engine.unload(digest))


def test_an_adapter_that_a_request_waits_for_is_not_unloaded_under_it(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine(max_rows=1)
    settle(lab, engine, engine.warm(digest))
    engine.submit(lab.ask("long", max_tokens=50))
    engine.step()
    waiting = engine.submit(lab.ask("hello", digest))
    engine.step()
    future = engine.unload(digest)
    engine.step()
    assert future.exception(0).code == "adapter_in_use"
    lab.drain(engine)
    assert waiting.result().ids


def test_an_adapter_that_is_being_loaded_is_not_unloaded(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    lab.source.gate.clear()
    warming = engine.warm(digest)
    engine.step()
    unloading = engine.unload(digest)
    engine.step()
    assert unloading.exception(0).code == "adapter_in_use"
    lab.source.gate.set()
    assert settle(lab, engine, warming)


def test_neighbours_answer_alike_while_others_come_and_go(lab):
    mine, others = lab.adapter("lora", 1, rank=4), [lab.adapter("lora", seed, rank=4) for seed in range(2, 6)]
    engine = lab.engine()
    handle = engine.submit(lab.ask("hello", mine, max_tokens=40))
    for digest in others * 4:
        engine.warm(digest)
        engine.step()
        engine.unload(digest)
        engine.step()
    lab.drain(engine)
    lab.same(handle.result(), lab.run(lab.engine(), [lab.ask("hello", mine, max_tokens=40)])[0])


def test_the_thread_that_owns_the_engine_does_both_for_any_task(lab):
    digest = lab.adapter("lora", 1)

    async def main(thread):
        return await thread.warm(digest), await thread.warm(digest), await thread.unload(digest)

    with EngineThread(lab.engine()) as thread:
        assert asyncio.run(main(thread)) == (True, False, True)


def test_an_engine_that_is_closed_refuses_and_tells_those_who_wait(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    waiting = engine.warm(digest)
    engine.close()
    assert waiting.exception(0).code == "shutting_down"
    for ask in (engine.warm, engine.unload):
        with pytest.raises(Unavailable):
            ask(digest)
