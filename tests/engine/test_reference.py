"""The engine against what it stands for: Hugging Face's greedy search, and the decoder's own whole forward pass."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from umbel.adapters.head import pool
from umbel.adapters.heads.classify import probabilities
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.core.contract import Contract, OutputHead
from umbel.engine import PoolRequest


@torch.no_grad()
def whole(lab, tokens, adapter=None):
    """(hidden, logits) [T, ...] at the text's own tokens, by one uncached pass over one row."""
    backbone = lab.backbone
    worn = [] if adapter is None else [lab.source.adapters[adapter]]
    virtual = worn[0].weights.num_virtual if worn else 0
    past = torch.tensor([worn[0].weights.num_past if worn else 0])
    ids = torch.tensor([[0] * virtual + list(tokens)])
    length = ids.shape[1]
    fused = fuse_all(worn, list(backbone.decoder.layers))
    rows = [0 if worn else None]
    step = whole_step(
        wear(fused, rows),
        rows=1,
        tokens=length,
        offsets=past,
        want=torch.arange(length),
        want_sites=wear(fused, rows * length),
    )
    output = backbone.decoder(ids, step)
    return output.hidden[0, virtual:], output.logits[virtual:]


def test_greedy_equals_hugging_face(lab, folder):
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    engine = lab.engine()
    for text in ("a", "hello world", "the quick brown fox " * 5):
        ids = torch.tensor([lab.tokens(text)])
        settings = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 258}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        answer = lab.run(engine, [lab.ask(text, max_tokens=30, ignore_eos=False)])[0]
        assert answer.ids == expected[0, ids.shape[1] :].tolist()


def test_a_generated_token_has_the_logprob_of_a_whole_pass(lab):
    for adapter in lab.zoo():
        answer = lab.run(lab.engine(step_tokens=16), [lab.ask("how are you?", adapter, logprobs=5)])[0]
        tokens = [*lab.tokens("how are you?"), *answer.ids]
        logprobs = whole(lab, tokens, adapter)[1].log_softmax(-1)[len(tokens) - len(answer.ids) - 1 : -1]
        for token, row in zip(answer.tokens, logprobs, strict=True):
            assert token.token == int(row.argmax())
            assert token.logprob == pytest.approx(float(row.max()), abs=2e-4)
            values, ids = row.topk(5)
            assert [x.token for x in token.top] == ids.tolist()
            assert [x.logprob for x in token.top] == pytest.approx(values.tolist(), abs=2e-4)


def test_echoed_logprobs_equal_a_whole_pass_however_the_prompt_is_cut(lab):
    text = "to be or not to be"
    for adapter in lab.zoo():
        engine = lab.engine(step_tokens=16)
        answer = lab.run(engine, [lab.ask(text, adapter, echo=True, logprobs=1, max_tokens=2)])[0]
        expected = whole(lab, lab.tokens(text), adapter)[1].log_softmax(-1)
        assert [entry.token for entry in answer.prompt] == list(lab.tokens(text))
        assert (answer.prompt[0].logprob, answer.prompt[0].top) == (None, ())
        for i, entry in enumerate(answer.prompt[1:]):
            assert entry.logprob == pytest.approx(float(expected[i, entry.token]), abs=2e-4)
            assert entry.top[0].token == int(expected[i].argmax())
        assert len(answer.tokens) == 2


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt_needs_no_generated_token(lab, max_tokens):
    request = lab.ask("score me", echo=True, logprobs=0, max_tokens=max_tokens)
    answer = lab.run(lab.engine(), [request])[0]
    assert len(answer.prompt) == len("score me") == answer.finished.usage.prompt_tokens
    assert all(entry.logprob is not None and entry.top == () for entry in answer.prompt[1:])
    assert (len(answer.tokens), answer.finished.reason) == (max_tokens, "length")
    assert answer.finished.usage.completion_tokens == max_tokens


def test_a_prompt_of_one_token_is_scored_and_continued(lab):
    answer = lab.run(lab.engine(), [lab.ask("x", echo=True, logprobs=1, max_tokens=1)])[0]
    assert [entry.logprob for entry in answer.prompt] == [None]
    assert answer.ids == [int(whole(lab, lab.tokens("x"))[1][-1].argmax())]


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "none"])
@pytest.mark.parametrize("head", ["classify", "regress", "tag", "embed"])
def test_an_output_head_reads_the_same_states_as_in_a_whole_pass(lab, method, head):
    labels = ("a", "b", "c") if head in ("classify", "tag") else ()
    digest = lab.adapter(method, 3, contract=Contract(output_head=OutputHead(head), labels=labels))
    tokens = lab.tokens("some words to judge")
    answer = lab.run(lab.engine(step_tokens=16), [PoolRequest(tokens=tokens, adapter=digest)])[0]
    hidden, _ = whole(lab, tokens, digest)
    own = lab.source.adapters[digest].head
    if own.config.pooling == "tokens":
        assert answer.logits.shape == (len(tokens), 3)
        expected = own.logits(hidden)
    else:
        pooled = pool(hidden[None], torch.tensor([len(tokens)]), torch.tensor([0]), own.config.pooling)
        expected = own.logits(pooled)[0]
    torch.testing.assert_close(answer.logits, expected, rtol=0, atol=2e-4)
    assert answer.finished.usage.prompt_tokens == len(tokens)
    assert answer.finished.usage.completion_tokens == 0


def test_a_classifier_has_logits_for_its_labels(lab):
    answer = lab.run(lab.engine(), [lab.pool("fine", lab.classifier(1))])[0]
    assert probabilities(answer.logits[None], multi_label=False).sum() == pytest.approx(1.0)
