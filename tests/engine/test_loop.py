"""The engine's thread: any thread and any task may ask; nothing kills it."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.engine.conftest import Lab

from umbel.core.errors import UmbelError, Unavailable
from umbel.engine import EngineThread, Finished, Token


@pytest.fixture
def thread(lab):
    with EngineThread(lab.engine()) as running:
        yield running


def test_many_tasks_get_the_answers_of_solo_runs(lab, thread):
    zoo = lab.zoo()
    requests = [lab.ask(f"text {i}", zoo[i % 10]) for i in range(20)]

    async def main():
        return await asyncio.gather(*(thread.answer(request) for request in requests))

    for request, answer in zip(requests, asyncio.run(main()), strict=True):
        lab.same(answer, lab.run(lab.engine(), [request])[0])


def test_many_threads_may_ask_at_once(lab, thread):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: thread.submit(lab.ask(f"text {i}")).result(), range(24)))
    assert all(len(answer.ids) == 10 for answer in answers)


def test_a_stream_gives_tokens_before_the_end(lab, thread):
    async def main():
        return [type(event) async for event in thread.submit(lab.ask("hello", max_tokens=4))]

    assert asyncio.run(main()) == [Token] * 4 + [Finished]


def test_a_reader_that_leaves_can_cancel(lab, thread):
    async def main():
        handle = thread.submit(lab.ask("hello", max_tokens=200))
        events = []
        async for event in handle:
            events.append(event)
            handle.cancel()
        return events

    *tokens, finished = asyncio.run(main())
    assert finished.reason == "cancelled"
    assert 1 <= len(tokens) < 200


def test_cancelling_the_task_cancels_the_request(lab):
    engine = lab.engine()

    async def main():
        task = asyncio.create_task(EngineThread(engine).answer(lab.ask("hello")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    lab.drain(engine)
    assert engine.stats().finished == {"cancelled": 1}


def test_a_fault_of_the_step_fails_its_requests_and_the_engine_goes_on(lab, thread, monkeypatch):
    broken = threading.Event()
    forward = thread.engine._forward

    def fail_once(plan):
        if not broken.is_set():
            broken.set()
            raise MemoryError("no")
        return forward(plan)

    monkeypatch.setattr(thread.engine, "_forward", fail_once)
    with pytest.raises(UmbelError) as failed:
        thread.submit(lab.ask("hello")).result()
    assert failed.value.code == "engine_fault"
    assert thread.submit(lab.ask("hello")).result().ids
    assert thread.healthy


def test_closing_drains_what_was_asked_before(lab):
    thread = EngineThread(lab.engine()).start()
    handles = [thread.submit(lab.ask("hello")) for _ in range(5)]
    thread.close(drain_s=30)
    assert all(handle.result().ids for handle in handles)
    assert not thread.healthy
    with pytest.raises(Unavailable, match="shutting down"):
        thread.submit(lab.ask("hello"))


def test_closing_at_once_fails_what_waits(lab):
    lab.source.gate.clear()
    thread = EngineThread(lab.engine()).start()
    handle = thread.submit(lab.ask("hello", lab.adapter("lora", 1)))
    closing = threading.Thread(target=thread.close)
    closing.start()
    with pytest.raises(Unavailable, match="shutting down"):
        handle.result()
    lab.source.gate.set()
    closing.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux tells them")
def test_whoever_starts_the_thread_keeps_no_team_beside_its(by_kernels):
    """Or OpenMP would count more threads than processors, and put them to sleep after each call of a step."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    lab = Lab(by_kernels)
    engine = lab.engine()
    (torch.ones(1 << 20) * 2).sum()
    held = len(os.listdir("/proc/self/task"))
    try:
        with EngineThread(engine):
            assert len(os.listdir("/proc/self/task")) <= held
    finally:
        torch.set_num_threads(before)
        lab.close()


def test_each_thread_that_steps_settles_its_helpers_once_and_keys_stay_where_they_are(lab, by_kernels, monkeypatch):
    settled = []
    monkeypatch.setattr(type(by_kernels.kernels), "settle", lambda kernels: settled.append(threading.get_ident()))
    lab.backbone = by_kernels
    engine = lab.engine()
    start = engine._forward.cache.slabs.data_ptr()
    lab.run(engine, [lab.ask("hello", max_tokens=240, ignore_eos=True)])
    assert settled == [threading.get_ident()]
    assert engine._forward.cache.slabs.data_ptr() == start
    with EngineThread(engine) as thread:
        for _ in range(2):
            thread.submit(lab.ask("hello")).result()
        assert settled == [threading.get_ident(), thread._thread.ident]
