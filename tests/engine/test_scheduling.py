"""Who runs when: limits, fairness, memory, cancels and deadlines."""

import itertools

import pytest

from umbel.core.errors import ConfigError, Overloaded, Unavailable, UsageError
from umbel.engine import Finished, GenerateRequest, Token


def order_of_ends(engine, handles):
    """Indices of the handles in the order in which they end, steps apart."""
    ended = []
    more = True
    while more:
        more = engine.step()
        ended += [i for i, handle in enumerate(handles) if handle.done and i not in ended]
    return ended


def test_one_request_too_many_is_told_when_to_come_back(lab):
    engine = lab.engine(max_waiting=3)
    handles = [engine.submit(lab.ask("hello")) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests wait already, the limit is 3") as refused:
        engine.submit(lab.ask("hello"))
    assert refused.value.code == "queue_full"
    assert refused.value.retry_after >= 1
    engine.step()
    handles.append(engine.submit(lab.ask("hello")))
    lab.drain(engine)
    assert all(handle.result().ids for handle in handles)


def test_one_adapters_flood_does_not_close_the_door_for_the_others(lab):
    busy, quiet = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine(max_waiting=6, max_rows=1)
    flood = [engine.submit(lab.ask("hello", busy, max_tokens=2)) for _ in range(6)]
    engine.step()
    flood += [engine.submit(lab.ask("hello", busy, max_tokens=2)) for _ in range(6 - engine.stats().waiting)]
    others = [engine.submit(lab.ask("hello", quiet, max_tokens=2)) for _ in range(3)]
    for adapter in (busy, quiet):
        with pytest.raises(Overloaded, match="9 requests wait already"):
            engine.submit(lab.ask("hello", adapter))
    lab.drain(engine)
    assert all(handle.result().ids for handle in flood + others)


def test_all_adapters_together_wait_for_no_more_than_twice_the_limit(lab):
    engine = lab.engine(max_waiting=40)
    for _ in range(40):
        engine.submit(lab.ask("hello", lab.adapter("lora", 1)))
    others = [lab.ask("hello", lab.adapter("lora", seed)) for seed in range(2, 41)]
    engine.submit_together(others)
    with pytest.raises(Overloaded, match="79 requests wait already, the limit is 40"):
        engine.submit_together([lab.ask("hello", lab.adapter("lora", seed)) for seed in (50, 51)])
    engine.submit(lab.ask("hello", lab.adapter("lora", 50)))


def test_a_quiet_adapters_prompt_is_read_before_the_rest_of_a_busy_ones(lab):
    """The busy adapter has been served much; its prompts were admitted first, but only begun."""
    busy, quiet = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine(step_tokens=32)
    lab.run(engine, [lab.ask("warm", adapter, max_tokens=1) for adapter in (busy, quiet)])
    running = engine.submit(lab.ask("hello", quiet, max_tokens=40))
    flood = [engine.submit(lab.ask("x" * 60, busy, max_tokens=3)) for _ in range(6)]
    for _ in range(3):
        engine.step()
    late = engine.submit(lab.ask("y" * 30, quiet, max_tokens=1))
    ended = order_of_ends(engine, [*flood, late, running])
    assert not {3, 4, 5} & set(ended[: ended.index(6)]), "no prompt that was not begun yet is read first"


def test_a_prompt_beyond_the_limit_is_refused_with_both_numbers(lab):
    engine = lab.engine(max_length=64)
    with pytest.raises(UsageError, match=r"has 60 tokens, and 5 more .* 65 in all, the limit is 64") as refused:
        engine.submit(lab.ask("x" * 60, max_tokens=5))
    assert refused.value.code == "context_length_exceeded"
    assert len(lab.run(engine, [lab.ask("x" * 60, max_tokens=4)])[0].ids) == 4


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_count_to_the_limit_but_not_to_usage(lab, method):
    digest, engine = lab.adapter(method, 1, length=7), lab.engine(max_length=64)
    answer = lab.run(engine, [lab.ask("x" * 50, digest, max_tokens=7)])[0]
    assert answer.finished.usage.prompt_tokens == 50
    with pytest.raises(UsageError, match="7 virtual tokens"):
        lab.run(engine, [lab.ask("x" * 50, digest, max_tokens=8)])


def test_no_max_tokens_means_what_fits(lab):
    engine = lab.engine(max_length=64)
    virtual = lab.adapter("prompt", 1, length=7)
    found = lab.run(engine, [lab.ask("x" * 40, None, max_tokens=None), lab.ask("x" * 40, virtual, max_tokens=None)])
    assert [len(answer.ids) for answer in found] == [24, 17]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tokens": ()}, "empty_prompt"),
        ({"tokens": (5, 260)}, "invalid_token"),
        ({"tokens": (-1,)}, "invalid_token"),
        ({"max_tokens": -1}, "invalid_value"),
        ({"max_tokens": 2, "min_tokens": 3}, "invalid_value"),
        ({"temperature": -0.1}, "invalid_value"),
        ({"temperature": float("nan")}, "invalid_value"),
        ({"top_p": 0.0}, "invalid_value"),
        ({"top_k": -2}, "invalid_value"),
        ({"logprobs": -1}, "invalid_value"),
        ({"stop_token_ids": (999,)}, "invalid_value"),
    ],
)
def test_what_can_never_run_is_refused_at_once(lab, changes, code):
    with pytest.raises(UsageError) as refused:
        lab.engine().submit(GenerateRequest(**{"tokens": (1, 2)} | changes))
    assert refused.value.code == code


def test_an_engine_without_room_for_one_token_is_no_engine(lab):
    with pytest.raises(ConfigError, match="kv_bytes"):
        lab.engine(kv_bytes=10)


def test_rows_join_and_leave_at_every_step(lab):
    engine = lab.engine(max_rows=2)
    handles = [engine.submit(lab.ask("hello", max_tokens=n)) for n in (2, 9, 3, 4)]
    assert order_of_ends(engine, handles) == [0, 2, 1, 3]
    assert engine.stats().steps == 9


def test_memory_promised_to_rows_never_exceeds_the_budget(lab):
    per_token = lab.backbone.kv_bytes_per_token
    engine = lab.engine(kv_bytes=100 * per_token, max_length=60)
    handles = [engine.submit(lab.ask("x" * n, max_tokens=n)) for n in (20, 25, 30, 5, 10, 29)]
    while engine.step():
        assert engine.scheduler.running.held <= 100
    assert all(handle.result().finished.reason == "length" for handle in handles)
    assert engine.scheduler.running.reserved == 0


def test_a_large_request_is_passed_a_few_times_and_then_waited_for(lab):
    engine = lab.engine(kv_bytes=100 * lab.backbone.kv_bytes_per_token, max_length=100, patience=3)
    adapter = lab.adapter("lora", 1)
    lab.run(engine, [lab.ask("x", adapter, max_tokens=1)])
    first = engine.submit(lab.ask("x" * 20, max_tokens=30))
    engine.step()
    large = engine.submit(lab.ask("x" * 65, adapter, max_tokens=30))
    small = [engine.submit(lab.ask("x" * 5, max_tokens=5)) for _ in range(20)]
    ended = order_of_ends(engine, [first, large, *small])
    assert ended[4] == 1, "three pass it while the first one runs, then nobody"
    assert set(ended[:4]) == {0, 2, 3, 4}


def test_a_busy_adapter_does_not_starve_a_quiet_one(lab):
    busy, quiet = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine(max_rows=2)
    lab.run(engine, [lab.ask("warm", quiet, max_tokens=1)])
    handles = [engine.submit(lab.ask("hello", busy)) for _ in range(20)]
    for _ in range(3):
        engine.step()
    handles.append(engine.submit(lab.ask("hello", quiet)))
    ended = order_of_ends(engine, handles)
    assert ended.index(20) < 6


def test_time_without_requests_is_not_saved_up(lab):
    busy, other = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine(max_rows=1)
    lab.run(engine, [lab.ask("warm", adapter, max_tokens=1) for adapter in (busy, other)])
    handles = [engine.submit(lab.ask("hello", busy)) for _ in range(6)]
    while sum(handle.done for handle in handles) < 3:
        engine.step()
    handles += [engine.submit(lab.ask("hello", other)) for _ in range(3)]
    ended = order_of_ends(engine, handles)
    assert 0 < len(set(ended[3:6]) & {6, 7, 8}) < 3, "both get their turn; who came late does not run alone"


def test_a_cancelled_row_is_gone_after_the_running_step(lab):
    adapter = lab.adapter("lora", 1)
    engine = lab.engine()
    stay, go = engine.submit(lab.ask("stay")), engine.submit(lab.ask("go", adapter, max_tokens=100))
    while engine.stats().running < 2:
        engine.step()
    go.cancel()
    go.cancel()
    engine.step()
    assert go.done
    assert engine.stats().running == 1
    assert engine.stats().adapters_worn == 0
    lab.drain(engine)
    assert list(go)[-1].reason == "cancelled"
    lab.same(stay.result(), lab.run(lab.engine(), [lab.ask("stay")])[0])


def test_a_waiting_request_can_be_cancelled(lab):
    engine = lab.engine(max_rows=1)
    handles = [engine.submit(lab.ask("hello")) for _ in range(3)]
    engine.step()
    handles[1].cancel()
    handles[2].cancel()
    engine.step()
    assert [list(handle)[-1].reason for handle in handles[1:]] == ["cancelled", "cancelled"]
    lab.drain(engine)
    assert handles[0].result().ids


def test_a_request_can_be_cancelled_before_any_step_and_after_its_end(lab):
    engine = lab.engine()
    early, late = engine.submit(lab.ask("a")), engine.submit(lab.ask("b"))
    early.cancel()
    lab.drain(engine)
    late.cancel()
    lab.drain(engine)
    assert [list(handle)[-1].reason for handle in (early, late)] == ["cancelled", "length"]


def test_a_deadline_ends_rows_wherever_they_are(lab):
    engine = lab.engine(max_rows=1)
    running, waiting = (engine.submit(lab.ask("hello", max_tokens=100, deadline=5.0)) for _ in range(2))
    patient = engine.submit(lab.ask("hello", deadline=50.0))
    engine.step()
    lab.now = 5.0
    lab.drain(engine)
    for handle in (running, waiting):
        error = list(handle)[-1].error
        assert isinstance(error, Unavailable)
        assert error.code == "deadline_exceeded"
    assert patient.result().ids


def test_timing_tells_waiting_from_reading_and_writing(lab):
    engine = lab.engine()
    handle = engine.submit(lab.ask("hello", max_tokens=3))
    lab.now = 1.0
    engine.step()
    lab.now = 3.0
    engine.step()
    lab.now = 6.0
    engine.step()
    timing = handle.result().finished.timing
    assert (timing.queue_ms, timing.load_ms, timing.prefill_ms, timing.decode_ms) == (1000, 0, 0, 5000)


def test_an_end_of_text_ends_the_row_and_has_no_text(lab):
    free = lab.run(lab.engine(), [lab.ask("hello")])[0]
    stop = free.ids[4]
    answer = lab.run(lab.engine(), [lab.ask("hello", stop_token_ids=(stop,))])[0]
    assert answer.ids == [*itertools.takewhile(lambda token: token != stop, free.ids), stop]
    assert answer.finished.reason == "stop"
    assert answer.tokens[-1].text == "" or answer.tokens[-1].text == "�"


def test_min_tokens_keeps_stops_away(lab):
    free = lab.run(lab.engine(), [lab.ask("hello")])[0]
    stop = free.ids[0]
    answer = lab.run(lab.engine(), [lab.ask("hello", stop_token_ids=(stop,), min_tokens=6)])[0]
    assert stop not in answer.ids[:6]
    assert len(answer.ids) >= 6


def test_min_tokens_ignores_stop_strings_before(lab):
    free = lab.run(lab.engine(), [lab.ask("hello", max_tokens=30)])[0]
    stop = next(token.text for token in free.tokens if token.text.isprintable() and token.text)
    early = lab.run(lab.engine(), [lab.ask("hello", max_tokens=30, stop=(stop,))])[0]
    late = lab.run(lab.engine(), [lab.ask("hello", max_tokens=30, stop=(stop,), min_tokens=30)])[0]
    assert early.finished.reason == "stop"
    assert stop not in early.text
    assert free.text.startswith(early.text)
    assert late.text == free.text


def test_the_same_seed_writes_the_same_in_any_company(any_lab):
    zoo = any_lab.zoo()
    settings = {"temperature": 1.2, "top_p": 0.95, "top_k": 50, "max_tokens": 12}
    requests = [any_lab.ask(f"text {i}", zoo[i % 10], seed=i, **settings) for i in range(12)]
    alone = [any_lab.run(any_lab.engine(), [request])[0] for request in requests]
    together = any_lab.run(any_lab.engine(max_rows=5), requests[::-1])[::-1]
    for one, other in zip(alone, together, strict=True):
        any_lab.same(one, other)
    other_seeds = [any_lab.ask(f"text {i}", zoo[i % 10], seed=100 + i, **settings) for i in range(12)]
    assert any(a.ids != b.ids for a, b in zip(alone, any_lab.run(any_lab.engine(), other_seeds), strict=True))


def test_the_text_is_what_the_tokens_decode_to(lab):
    answers = lab.run(lab.engine(), [lab.ask(f"text {i}", max_tokens=i) for i in range(1, 30)])
    assert any(answer.text.endswith("\ufffd") for answer in answers), "some must end within a character"
    for answer in answers:
        assert answer.text == lab.backbone.tokenizer.decode(answer.ids)


def test_events_come_as_they_are_made_and_end_once(lab):
    engine = lab.engine()
    handle = engine.submit(lab.ask("hello", max_tokens=3))
    kinds = [type(event) for event in handle]  # the reader steps the engine itself
    assert kinds == [Token, Token, Token, Finished]


def test_stats_count_what_happened(lab):
    engine = lab.engine()
    lab.run(engine, [lab.ask("hello", lab.adapter("lora", 1)), lab.ask("hi"), lab.pool("text", lab.classifier(2))])
    stats = engine.stats()
    assert stats.prompt_tokens == len("hello") + len("hi") + len("text")
    assert stats.generated_tokens == 20
    assert stats.finished == {"length": 2, "stop": 1}
    assert (stats.running, stats.waiting, stats.kv_bytes_reserved, stats.adapters_worn) == (0, 0, 0, 0)
    assert len(stats.adapters) == 2
    assert stats.adapter_bytes > 0


def test_failing_everything_leaves_a_clean_engine(lab):
    engine = lab.engine(max_rows=2)
    handles = [engine.submit(lab.ask("hello", lab.adapter("lora", i))) for i in range(5)]
    for _ in range(3):
        engine.step()
    engine.fail_all(Unavailable("gone.", code="gone"))
    assert [list(handle)[-1].error.code for handle in handles] == ["gone"] * 5
    assert (engine.stats().running, engine.stats().waiting, engine.stats().adapters_worn) == (0, 0, 0)
    assert lab.run(engine, [lab.ask("hello")])[0].ids == lab.run(lab.engine(), [lab.ask("hello")])[0].ids
