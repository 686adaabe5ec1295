"""LoRA on embeddings, token rows, full copies and biases in the flat batch: prefill, decode and logits."""

import pytest
import torch

from umbel.adapters.lora_batch import LoraBatch, LoraEverywhere
from umbel.engine.dressing import Dresser

LETTERS = list(range(64, 90))  # among the tokens of any English text under the byte tokenizer


@pytest.fixture
def adapters(any_lab):
    return [
        any_lab.adapter("lora", 41, rank=3, targets=("v_proj", "embed_tokens")),
        any_lab.adapter("lora", 42, rank=3, targets=("v_proj", "embed_tokens")),
        any_lab.adapter("lora", 43, rank=2, targets=("q_proj",), token_rows=LETTERS),
        any_lab.adapter("lora", 44, rank=2, targets=("q_proj",), token_rows=LETTERS[::-1]),
        any_lab.adapter("lora", 45, rank=2, targets=("q_proj",), full_copies=("lm_head",)),
        any_lab.adapter("lora", 46, rank=2, targets=("q_proj",), full_copies=("embed_tokens",)),
        any_lab.adapter("lora", 47, rank=2, targets=("q_proj", "down_proj"), lora_bias=True),
        any_lab.adapter("lora", 48, rank=4),
        None,
    ]


def requests(lab, adapters):
    return [lab.ask(f"the quick brown fox {i} " * (1 + i % 3), adapters[i % len(adapters)]) for i in range(14)]


def test_each_changes_the_answer(any_lab, adapters):
    *own, bare = adapters
    plain = any_lab.run(any_lab.engine(), [any_lab.ask("hello", bare)])[0]
    for answer in any_lab.run(any_lab.engine(), [any_lab.ask("hello", adapter) for adapter in own]):
        assert abs(answer.tokens[0].logprob - plain.tokens[0].logprob) > 10 * 2e-4


@pytest.mark.parametrize("step_tokens", [9, 200])
def test_in_company_each_answers_as_alone(any_lab, adapters, step_tokens):
    asked = requests(any_lab, adapters)
    together = any_lab.run(any_lab.engine(max_rows=8, step_tokens=step_tokens), asked)
    for request, answer in zip(asked, together, strict=True):
        any_lab.same(answer, any_lab.run(any_lab.engine(), [request])[0])


def test_freed_slots_reach_nobody(any_lab, adapters):
    asked = requests(any_lab, adapters)
    expected = any_lab.run(any_lab.engine(), asked)
    engine = any_lab.engine(max_rows=5)
    handles = [engine.submit(request) for request in asked]
    any_lab.poison(engine)
    while engine.step():
        any_lab.poison(engine)
    for handle, answer in zip(handles, expected, strict=True):
        any_lab.same(handle.result(), answer)


def test_plain_lora_keeps_its_own_class_beside_them(any_lab, adapters):
    """A plain adapter must not pay for its neighbours' embeddings, token rows or biases."""
    engine = any_lab.engine()
    any_lab.run(engine, requests(any_lab, adapters))
    residents = [engine.bank.get(digest) for digest in adapters if digest]
    kinds = [type(part) for part in Dresser(torch.device("cpu")).parts(list(enumerate(residents)), len(residents))]
    assert kinds.count(LoraBatch) == 1
    assert set(kinds) == {LoraBatch, LoraEverywhere}
