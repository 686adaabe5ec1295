"""All layers in one call: the bits are those of calling the kernels one by one, whoever is worn."""

import pytest
import torch
from tests.engine.conftest import Lab

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.forms import FORMS
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

    def noted(x, rotation, **told):
        rows.append(len(x))
        return through(x, rotation, **told)

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
    written, calls = [], Tape._calls
    monkeypatch.setattr(Tape, "_calls", lambda *args: written.append(args) or calls(*args))
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


def test_a_backbone_of_torchs_has_none(by_torch):
    assert Tape.of(by_torch) is None
