"""All layers in one call: the bits are those of calling the kernels one by one, whoever is worn."""

import ctypes

import pytest
import torch
from tests.engine.conftest import Lab

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import UmbelError
from umbel.core.forms import FORMS
from umbel.engine import forward, tape
from umbel.engine.native_lora import NativeLora
from umbel.engine.tape import Tape

TEXTS = ["a", "the quick brown fox", "hello " * 9, "0123456789" * 4]


@pytest.fixture(autouse=True)
def skip_where_onednn_is_better(kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's")


@pytest.fixture(params=["by_kernels", "odd"])
def taped(request):
    made = Lab(request.getfixturevalue(request.param))
    yield made
    made.close()


def without_a_tape(engine):
    assert engine._forward._tape is not None
    engine._forward._tape = None
    return engine


def count(engine):
    """Rows of each step that goes through the tape."""
    tape, rows = engine._forward._tape, []
    through = tape.through

    def noted(tokens, *args, **told):
        rows.append(len(tokens))
        return through(tokens, *args, **told)

    tape.through = noted
    return rows


def equal(lab, requests, **options):
    engine = lab.engine(**options)
    rows = count(engine)
    answers = lab.run(engine, requests)
    plain = lab.run(without_a_tape(lab.engine(**options)), requests)
    for one, other in zip(answers, plain, strict=True):
        assert one.ids == other.ids
        assert [token.logprob for token in one.tokens] == [token.logprob for token in other.tokens]
    return rows


def test_a_lone_bare_row_needs_no_double_and_has_the_same_bits(taped):
    rows = equal(taped, [taped.ask("hello")])
    assert rows[0] == len("hello")
    assert set(rows[1:]) == {1}


def test_every_kernels_method_beside_bare_rows_in_steps_of_prompts_and_answers(taped):
    zoo = [adapter for adapter in taped.zoo() if "lm_head" not in str(adapter)]
    requests = [taped.ask(TEXTS[i % len(TEXTS)] + str(i), zoo[i % len(zoo)]) for i in range(16)]
    rows = equal(taped, requests, step_tokens=24)
    assert max(rows) > 16 > min(rows)


@pytest.mark.parametrize("length", [40, 100], ids=["few places", "more than a tape holds"])
def test_the_prompts_own_logprobs_are_those_of_calls_one_by_one(taped, length):
    engine, request = taped.engine(), taped.ask("0123456789" * (length // 10), echo=True, logprobs=3, max_tokens=4)
    found, plain = taped.run(engine, [request])[0], taped.run(without_a_tape(taped.engine()), [request])[0]
    assert len(found.prompt) == length
    assert (found.prompt, found.tokens) == (plain.prompt, plain.tokens)


def test_what_is_drawn_from_logits_that_a_tape_left_is_what_it_was(taped):
    """Greedy rows take the likeliest that the tape found; others need the logits, and may ban what is likeliest."""
    ends = taped.run(taped.engine(), [taped.ask("hello")])[0].ids[0]
    requests = [
        taped.ask("hello"),
        taped.ask("hello", temperature=1.0, seed=1, top_p=0.9),
        taped.ask("hello", min_tokens=3, stop_token_ids=(ends,)),
        taped.ask("hello", logprobs=2),
    ]
    equal(taped, requests)


def test_positions_beyond_those_that_were_turned_before(taped, monkeypatch):
    """Cosines and sines stand in a table, which grows."""
    monkeypatch.setattr(tape, "_LEAST_POSITIONS", 16)
    engine, request = taped.engine(), taped.ask("x" * 60, max_tokens=8)
    assert len(engine._forward._tape._angles[0]) == 16
    found = taped.run(engine, [request])[0]
    assert len(engine._forward._tape._angles[0]) == 128
    assert found.ids == taped.run(without_a_tape(taped.engine()), [request])[0].ids


def test_a_token_that_does_not_exist_is_no_number_and_fails_alone(taped, monkeypatch):
    """``Limits`` refuses it; should one ever get past, no memory is read for it."""
    engine, inputs, beyond = taped.engine(), forward._inputs, taped.backbone.shape.vocab
    good, bad = engine.submit(taped.ask("hello")), engine.submit(taped.ask("x"))
    monkeypatch.setattr(
        forward, "_inputs", lambda plan: ([beyond if t == ord("x") else t for t in inputs(plan)[0]], inputs(plan)[1])
    )
    expected = taped.run(without_a_tape(taped.engine()), [taped.ask("hello")])[0].ids
    taped.drain(engine)
    assert good.result().ids == expected
    with pytest.raises(UmbelError, match="not finite"):
        bad.result()


def played(engine):
    """Rows of each list of calls."""
    tape, rows = engine._forward._tape, []
    play = tape._play

    def noted(entries):
        rows.append(tape._now.rows)
        play(entries)

    tape._play = noted
    return rows


def test_behind_the_last_attention_only_what_somebody_reads_is_done(taped):
    """The last token of a prompt, and no token of a chunk in its midst."""
    engine = taped.engine(step_tokens=40)
    rows = played(engine)
    taped.run(engine, [taped.ask("x" * 100, max_tokens=3)])
    assert rows == [40, 40, 20, 1, 1, 1]


def test_beside_a_prompt_each_answer_is_done_to_its_end_as_what_it_wears(taped):
    """Rows that answer stand before the prompts' in the batch, and their adapters with them."""
    engine = taped.engine(step_tokens=80)
    worn = [taped.adapter("lora", 1), taped.adapter("ia3", 1), taped.adapter("bottleneck", 1), None]
    short = [taped.ask(text, adapter, max_tokens=20) for text, adapter in zip("abcd", worn, strict=True)]
    long = [taped.ask("y" * 70 + str(i), adapter) for i, adapter in enumerate(worn)]
    taped.run(engine, short)  # all are resident afterwards
    rows = played(engine)
    together = taped.run(engine, short + long)
    assert rows[:8] == [80, 5, 80, 6, 80, 7, 66, 8], "four answers, and one more with each prompt that ends"
    plain = without_a_tape(taped.engine(step_tokens=80))
    for answer, other in zip(together, taped.run(plain, short + long), strict=True):
        assert [token.logprob for token in answer.tokens] == [token.logprob for token in other.tokens]
        assert answer.ids == other.ids


def test_what_a_part_tells_its_calls_stays_while_bare_prompts_are_read_beside_its_rows(taped, monkeypatch):
    """Answers wear the same in a step with a bare prompt and in one without, so they have the same part. Asked anew for
    its calls it would let go of what those of the other list are told."""
    asked, calls = [], NativeLora.calls
    monkeypatch.setattr(NativeLora, "calls", lambda self, *args: asked.append(self) or calls(self, *args))
    engine = taped.engine(step_tokens=60)
    worn = taped.ask("hello", taped.adapter("lora", 1), max_tokens=30)
    taped.run(engine, [worn])
    row = engine.submit(worn)
    for _ in range(4):
        engine.step()
    bare = engine.submit(taped.ask("y" * 150))
    taped.drain(engine)
    assert len(asked) == len(set(asked))
    plain = without_a_tape(taped.engine(step_tokens=60))
    assert row.result().ids == taped.run(plain, [worn])[0].ids
    assert bare.result().ids == taped.run(plain, [taped.ask("y" * 150)])[0].ids


def test_a_prompt_that_is_scored_or_read_by_a_head_is_done_to_its_end(taped):
    tagger = taped.adapter("lora", 1, contract=Contract(output_head=OutputHead.TAG, labels=("O", "X")))
    text, engine = "0123456789" * 4, taped.engine()
    rows = played(engine)
    asked = [taped.ask(text, echo=True, logprobs=0), taped.pool(text, tagger), taped.pool(text, taped.classifier(2))]
    found = [taped.run(engine, [request])[0] for request in asked]
    assert rows[-3:] == [40, 40, 1], "all of a tagger's tokens, and of a classifier's the last"
    assert max(rows) == rows[0] == 40
    assert 1 not in rows[:1]
    plain = without_a_tape(taped.engine())
    for answer, other in zip(found, (taped.run(plain, [request])[0] for request in asked), strict=True):
        taped.same(answer, other)


def after_steps(engine, spoil):
    """Calls ``spoil`` with the states of each step that reads a prompt."""
    tape = engine._forward._tape
    through = tape.through

    def spoiled(tokens, *args, **told):
        played = through(tokens, *args, **told)
        if len(tokens) > 1:
            spoil(played.hidden)
        return played

    tape.through = spoiled
    return engine


@pytest.mark.parametrize("text", ["x" * 15, "x" * 40], ids=["all computed", "the last alone"])
def test_states_that_nobody_reads_end_no_row_in_any_company_but_nothing_is_kept_of_it(taped, text):
    plain = taped.engine()
    taped.run(plain, [taped.ask(text + "y")])
    assert plain.scheduler.running.prefixes.tokens == len(text + "y") // 16 * 16
    engine = after_steps(taped.engine(), lambda states: states[0].fill_(float("nan")))
    answer = taped.run(engine, [taped.ask(text + "y")])[0]
    assert answer.ids == taped.run(plain, [taped.ask(text + "y")])[0].ids
    assert engine.scheduler.running.prefixes.tokens == 0
    engine = after_steps(taped.engine(), lambda states: states[-1].fill_(float("nan")))
    with pytest.raises(UmbelError, match="not finite"):
        taped.run(engine, [taped.ask(text + "y")])
    assert engine.scheduler.running.prefixes.tokens == 0


def test_keys_of_the_last_layer_that_no_state_tells_of_are_looked_at_themselves(taped):
    engine = taped.engine(step_tokens=40)
    slabs = engine.scheduler.running.cache.slabs
    after_steps(engine, lambda states: slabs[-1, 1, 0, :, 3].fill_(float("inf")))
    with pytest.raises(UmbelError, match="not finite"):  # a later token read them
        taped.run(engine, [taped.ask("x" * 100)])
    assert engine.scheduler.running.prefixes.tokens == 0


@pytest.mark.parametrize(("spoil", "kept"), [(None, 32 + 96), (float("nan"), 0)], ids=["sound", "spoilt"])
def test_who_reads_on_for_another_knows_that_nothing_may_be_kept(taped, spoil, kept):
    first_step, texts = [spoil is not None], Contract(output_head=OutputHead.CLASSIFY, labels=("a", "b"))
    engine = taped.engine(step_tokens=40)
    after_steps(engine, lambda states: states[0].fill_(spoil) if first_step and first_step.pop() else None)
    heads = [taped.adapter("none", seed, contract=texts) for seed in (1, 2)]
    warm = [engine.warm(head) for head in heads]
    taped.drain(engine)
    assert all(done.result() for done in warm)
    leader, heir = engine.submit_together([taped.pool("x" * 100, head) for head in heads])
    engine.step()
    leader.cancel()
    taped.drain(engine)
    assert heir.result().logits.isfinite().all()
    assert engine.scheduler.running.prefixes.tokens == kept, "two blocks of the leader's, and all of the heir's"


def test_a_step_with_more_rows_than_any_before_it(taped):
    """The room that calls read and write is made anew, and so are the calls."""
    engine = taped.engine(step_tokens=256)
    rows = count(engine)
    texts = ["a", "b" * 100, "c" * 200, "d"]
    found = [taped.run(engine, [taped.ask(text)])[0] for text in texts]
    plain = without_a_tape(taped.engine(step_tokens=256))
    assert [answer.ids for answer in found] == [taped.run(plain, [taped.ask(text)])[0].ids for text in texts]
    assert max(rows) == 200


def test_more_threads_than_when_it_was_written(taped):
    before = torch.get_num_threads()
    engine, request = taped.engine(), taped.ask("hello" * 8, taped.adapter("lora", 1))
    try:
        torch.set_num_threads(1)
        alone = taped.run(engine, [request])[0].ids
        torch.set_num_threads(3)
        assert taped.run(engine, [request])[0].ids == alone
        assert engine._forward._tape._bare.room.threads == 3  # each unpacks codes in a room of its own
    finally:
        torch.set_num_threads(before)


def test_the_calls_are_written_once_for_as_long_as_the_same_is_worn(taped, monkeypatch):
    requests = [taped.ask("hello", taped.adapter("lora", seed), max_tokens=30) for seed in range(3)]
    engine = taped.engine()
    taped.run(engine, requests)  # all are resident afterwards
    written, calls = [], Tape._beginning_of
    monkeypatch.setattr(Tape, "_beginning_of", lambda *args: written.append(args) or calls(*args))
    taped.run(engine, requests)
    assert len(written) == 2  # for the step of the prompts, and for all those of the answers


def test_virtual_tokens_stand_before_the_layers_and_do_not_matter_to_them(taped):
    rows = equal(taped, [taped.ask("hello", taped.adapter("prompt", 1, length=4)), taped.ask("hi")])
    assert sum(rows) == len("hello") + 4 + len("hi") + 2 * 9


def test_a_step_with_an_adapter_that_no_kernel_knows_goes_the_way_of_torch(taped):
    """LoRA of the embeddings is torch's, and so is all of that adapter; others beside it are as they were."""
    worn = taped.adapter("lora", 1, targets=("q_proj", "embed_tokens"))
    assert equal(taped, [taped.ask("hello", worn)]) == []
    equal(taped, [taped.ask("hello", worn), taped.ask("hello"), taped.ask("hi", taped.adapter("lora", 2))])


@pytest.mark.parametrize("form", FORMS)
def test_quantised_layers_have_the_same_bits_too(form, kernels, tmp_path):
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "attention_bias": True}
    folder = tiny_backbone(tmp_path / "tiny", **sizes)
    lab = Lab(load_backbone(folder, dtype="bf16", packed=True, quantise=form, kernels=kernels))
    requests = [lab.ask(text, adapter) for text in TEXTS for adapter in (None, lab.adapter("lora", 1))]
    assert equal(lab, requests)
    lab.close()


def test_each_linear_knows_whose_weights_come_next(taped):
    """So that they are on their way when it is done; only the clock would tell."""
    engine = taped.engine()
    taped.run(engine, [taped.ask("hello")])
    products = engine._forward._tape._bare.products
    assert [product.next for product in products[:-1]] == [ctypes.addressof(product) for product in products[1:]]
    assert products[-1].next is None
    assert len(products) == 4 * taped.backbone.shape.layers + 1, "those of the layers, and lm_head"


def test_a_backbone_of_torchs_has_none(by_torch):
    assert Tape.of(by_torch) is None
