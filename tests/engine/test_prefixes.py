"""Kept beginnings of prompts: a hit changes nothing, crosses nothing, and leaves when rows need its room."""

import torch

from umbel.core.contract import Contract, OutputHead
from umbel.engine.prefixes import BLOCK

SYSTEM = "you are a careful assistant. answer shortly and never guess."


def cached(answer):
    return answer.finished.usage.cached_tokens


def blocks_of(engine):
    return list(engine.scheduler.running.prefixes._used)


def test_a_hit_changes_no_token_of_any_method(any_lab):
    requests = [any_lab.ask(SYSTEM + text, adapter) for adapter in any_lab.zoo() for text in ("", " yes?", " no?")]
    plain = any_lab.run(any_lab.engine(prefix_bytes=0), requests)
    engine = any_lab.engine(max_rows=4, step_tokens=40)
    any_lab.run(engine, requests)
    any_lab.poison(engine)
    again = any_lab.run(engine, requests[::-1])[::-1]
    for one, other in zip(again, plain, strict=True):
        any_lab.same(one, other)
        assert cached(one) >= 40
        assert cached(other) == 0


def test_a_beginning_that_another_row_is_just_reading_is_not_read_twice(lab):
    engine = lab.engine(step_tokens=len(SYSTEM))
    answers = lab.run(engine, [lab.ask(SYSTEM + str(i)) for i in range(5)])
    whole = len(SYSTEM) // BLOCK * BLOCK
    assert [cached(answer) for answer in answers] == [0] + [whole] * 4
    assert engine.stats().prompt_tokens == 5 * (len(SYSTEM) + 1) - 4 * whole
    assert (engine.stats().prefix_hits, engine.stats().prefix_tokens) == (4, 4 * whole)


def test_a_hit_never_crosses_tenants_or_digests(lab):
    """Blocks of the first tenant are filled with NaN: whoever touched them would fail."""
    mine, other = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine()
    lab.run(engine, [lab.ask(SYSTEM, mine, tenant="ann")])
    with torch.inference_mode():
        for block in blocks_of(engine):
            block.kv.fill_(float("nan"))
    strangers = [lab.ask(SYSTEM, mine, tenant="bob"), lab.ask(SYSTEM, mine), lab.ask(SYSTEM, other, tenant="ann")]
    strangers += [lab.ask(SYSTEM, tenant="ann"), lab.ask("Y" + SYSTEM[1:], mine, tenant="ann")]
    for request, answer in zip(strangers, lab.run(engine, strangers), strict=True):
        assert cached(answer) == 0
        lab.same(answer, lab.run(lab.engine(prefix_bytes=0), [request])[0])
    owner = engine.submit(lab.ask(SYSTEM, mine, tenant="ann"))
    lab.drain(engine)
    assert list(owner)[-1].error.code == "non_finite_output", "the owner's request does use them"
    assert engine.scheduler.running.cache.slabs.isfinite().all()


def test_the_last_token_of_a_prompt_is_always_computed(lab):
    engine, request = lab.engine(), lab.ask("x" * 2 * BLOCK)
    first, second = (lab.run(engine, [request])[0] for _ in range(2))
    assert (cached(first), cached(second)) == (0, BLOCK)
    lab.same(first, second)


def test_virtual_tokens_are_kept_but_not_counted(lab):
    engine, request = lab.engine(), lab.ask("x" * 60, lab.adapter("prompt", 1, length=4))
    first, second = (lab.run(engine, [request])[0] for _ in range(2))
    assert cached(second) == 3 * BLOCK - 4
    lab.same(first, second)


def test_what_reads_every_token_of_its_prompt_computes_every_token(any_lab):
    tagger = any_lab.adapter("lora", 1, contract=Contract(output_head=OutputHead.TAG, labels=("O", "X")))
    last, engine = any_lab.classifier(2), any_lab.engine()
    requests = [any_lab.ask(SYSTEM, echo=True), any_lab.pool(SYSTEM, tagger), any_lab.pool(SYSTEM, last)]
    plain = any_lab.run(any_lab.engine(prefix_bytes=0), requests)
    for _ in range(2):
        found = any_lab.run(engine, requests)
    assert [cached(answer) for answer in found] == [0, 0, (len(SYSTEM) - 1) // BLOCK * BLOCK]
    assert [one.logprob for one in found[0].prompt[1:]] == [one.logprob for one in plain[0].prompt[1:]]
    for one, other in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=any_lab.tolerance)


def test_the_least_recently_used_beginning_leaves_first(lab):
    engine = lab.engine(prefix_bytes=6 * BLOCK * lab.backbone.kv_bytes_per_token)
    texts = [letter * 3 * BLOCK for letter in "abc"]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        lab.run(engine, [lab.ask(text, max_tokens=1)])
    assert len(blocks_of(engine)) == 6
    assert [cached(lab.run(engine, [lab.ask(text + "!", max_tokens=1)])[0]) for text in (texts[2], texts[0])] == [
        48,
        48,
    ]
    assert cached(lab.run(engine, [lab.ask(texts[1] + "!", max_tokens=1)])[0]) == 0


def test_a_beginning_longer_than_the_room_is_kept_in_part(lab):
    engine = lab.engine(prefix_bytes=2 * BLOCK * lab.backbone.kv_bytes_per_token)
    answers = [lab.run(engine, [lab.ask("x" * 90)])[0] for _ in range(2)]
    assert cached(answers[1]) == 2 * BLOCK
    lab.same(*answers)


def test_kept_beginnings_make_room_for_rows(lab):
    per_token = lab.backbone.kv_bytes_per_token
    engine = lab.engine(kv_bytes=300 * per_token, max_length=200)
    for letter in "abcdef":
        handles = [engine.submit(lab.ask(letter * n, max_tokens=30)) for n in (20, 40, 80)]
        while engine.step():
            stats = engine.stats()
            assert stats.kv_bytes_kept + stats.kv_bytes_reserved <= 300 * per_token
        for handle, n in zip(handles, (20, 40, 80), strict=True):
            lab.same(handle.result(), lab.run(lab.engine(), [lab.ask(letter * n, max_tokens=30)])[0])
    assert engine.stats().kv_bytes_kept >= 48 * per_token


def test_a_beginning_outlives_the_slot_of_its_adapter(lab):
    """A digest means the same after its adapter was evicted and loaded again."""
    adapter, engine = lab.adapter("prefix", 1, length=5), lab.engine()
    first = lab.run(engine, [lab.ask(SYSTEM, adapter)])[0]
    engine.bank.evict(engine.bank.get(adapter))
    second = lab.run(engine, [lab.ask(SYSTEM, adapter)])[0]
    assert cached(second) > 0
    lab.same(first, second)


def test_a_cache_that_is_off_keeps_nothing(lab):
    engine = lab.engine(prefix_bytes=0)
    assert [cached(lab.run(engine, [lab.ask(SYSTEM)])[0]) for _ in range(2)] == [0, 0]
    assert engine.stats().kv_bytes_kept == 0


def test_rows_that_share_a_prompt_skip_what_all_of_them_can(lab):
    """A tagger beside a classifier needs every token's hidden state, so nothing is skipped for either."""
    tags = Contract(output_head=OutputHead.TAG, labels=("O", "X"))
    readers, tagger = [lab.classifier(seed, "none") for seed in (1, 2)], lab.adapter("none", 3, contract=tags)
    engine = lab.engine()

    def together(adapters):
        handles = engine.submit_together([lab.pool(SYSTEM, adapter) for adapter in adapters])
        lab.drain(engine)
        return [handle.result() for handle in handles]

    first, again, with_tagger = together(readers), together(readers), together([readers[0], tagger])
    assert engine.stats().prefix_hits == 1
    assert engine.stats().prompt_tokens == 3 * len(SYSTEM) - (len(SYSTEM) - 1) // BLOCK * BLOCK
    assert with_tagger[1].logits.shape[0] == len(SYSTEM)
    for one, other in zip([*again, with_tagger[0]], [*first, first[0]], strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=lab.tolerance)
