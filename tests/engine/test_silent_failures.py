"""Failures of other serving systems that give no error, only a wrong answer: each shown right here.

``docs/silent-failures.md`` lists every one with its source and its test. Those that a test elsewhere shows already are
not repeated here:

in-flight row answered by an adapter loaded meanwhile   test_company.py::test_loading_and_evicting_others_meanwhile_changes_nothing
slots of another layout used again                      test_slots.py::test_a_kept_layout_is_never_that_of_another_stack
mixed with rows of the bare backbone                    test_company.py::test_sixteen_rows_over_ten_kinds_answer_as_each_alone
generation and output heads on one engine               test_company.py::test_a_classification_is_the_same_beside_generating_rows
answers differ from PEFT's                              tests/adapters/test_parity_matrix.py, test_lora_parity.py, test_methods_parity.py
a missing adapter answered by the bare backbone         test_loading.py::test_an_adapter_that_does_not_exist_is_an_error_and_no_answer
damaged files answered by the bare backbone             test_loading.py::test_damaged_files_are_an_error_and_never_the_bare_backbones_answer
a load that failed reported as done                     test_warming.py::test_a_load_that_fails_is_told_and_nothing_else_suffers
an adapter of another backbone                          test_loading.py::test_an_adapter_of_another_backbone_is_refused
keys without their prefix, fields unread                tests/adapters/test_bad_adapters.py::test_a_bad_adapter_is_refused_with_its_code
an adapter without effect                               tests/adapters/test_bad_adapters.py::test_an_adapter_without_effect_is_refused
a quiet adapter starved                                 test_scheduling.py::test_a_busy_adapter_does_not_starve_a_quiet_one
ranks padded to the largest                             test_slots.py::test_adapters_of_other_shapes_are_never_padded_together
echo without the prompt's log-probabilities             test_reference.py::test_echoed_logprobs_equal_a_whole_pass_however_the_prompt_is_cut
pooling on padding or virtual tokens                    tests/adapters/test_heads.py::test_pooling_is_right_under_padding_on_every_method
"""  # noqa: E501

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.parity import by_whole_pass

from umbel.adapters.sites import BARE
from umbel.core.contract import Contract, OutputHead
from umbel.engine import EngineThread

PAGE = Path(__file__).resolve().parents[2] / "docs" / "silent-failures.md"
PROMPT = "one prompt for all of them"
OPTIONS = {
    "rslora": ({"rank": 4, "alpha": 16.0, "rslora": True}, {"rslora": False}),
    "alpha_pattern": ({"rank": 4, "alpha_pattern": {"q_proj": 64.0, "down_proj": 1.0}}, {"alpha_pattern": {}}),
    "dora": ({"rank": 4, "dora": True}, {"dora": False}),
    "lm_head": ({"rank": 4, "targets": ("v_proj", "lm_head")}, {"targets": ("v_proj",)}),
    "layers_to_transform": ({"rank": 4, "layers": (1,)}, {"layers": None}),
    "rank_pattern": ({"rank": 4, "rank_pattern": {"v_proj": 2, "up_proj": 9}}, {"rank_pattern": {}}),
}


def scored(lab, adapter):
    """Log-probability of each token of the prompt after the first."""
    request = lab.ask(PROMPT, adapter, echo=True, max_tokens=0)
    (answer,) = lab.run(lab.engine(step_tokens=16), [request])
    return torch.tensor([entry.logprob for entry in answer.prompt[1:]])


def head_of(size):
    labels = tuple("abcdefg"[:size])
    return Contract(output_head=OutputHead.CLASSIFY, labels=labels) if size > 1 else Contract(output_head="regress")


def test_one_prompt_under_each_adapter_in_turn_never_meets_anothers_keys(any_lab):
    """Prompt caches shared by adapters of one prompt, or by two of one name (llama.cpp #26207, vllm #30931)."""
    requests = [any_lab.ask(PROMPT, adapter) for adapter in any_lab.zoo()]
    alone = [any_lab.run(any_lab.engine(), [request])[0] for request in requests]
    engine = any_lab.engine(max_rows=1)
    for i in random.Random(0).sample([*range(len(requests))] * 2, 2 * len(requests)):
        any_lab.same(any_lab.run(engine, [requests[i]])[0], alone[i])
    assert engine.stats().prefix_tokens >= 10 * 16, "each adapter's second answer begins with its own kept keys"


def test_new_weights_under_an_old_name_answer_as_themselves(any_lab):
    """A reload under the same name answers from the old weights' keys (vllm #42125, #42495, #48352)."""
    old, new = any_lab.adapter("lora", 1, rank=4), any_lab.adapter("lora", 2, rank=4)
    for digest in (old, new):
        any_lab.source.adapters[digest] = replace(any_lab.source.adapters[digest], name="mood:1")
    alone = {d: any_lab.run(any_lab.engine(), [any_lab.ask(PROMPT, d)])[0] for d in (old, new)}
    assert abs(alone[old].tokens[0].logprob - alone[new].tokens[0].logprob) > 10 * 2e-4
    engine = any_lab.engine(max_rows=2)
    running = engine.submit(any_lab.ask(PROMPT, old))
    engine.step()
    after = [engine.submit(any_lab.ask(PROMPT, digest)) for digest in (new, old, new)]
    any_lab.drain(engine)
    for handle, digest in zip([running, *after], (old, new, old, new), strict=True):
        any_lab.same(handle.result(), alone[digest])


def test_an_adapter_that_was_evicted_comes_back_as_itself(any_lab):
    """A slot given to another adapter still answers for the first (vllm #7169, #12199)."""
    adapters = [any_lab.adapter("lora", seed, rank=4) for seed in range(3)]
    alone = [any_lab.run(any_lab.engine(), [any_lab.ask(PROMPT, adapter)])[0] for adapter in adapters]
    probe = any_lab.engine()
    any_lab.run(probe, [any_lab.ask(PROMPT, adapters[0])])
    engine = any_lab.engine(adapter_bytes=probe.bank.used)
    for i in (0, 1, 0, 2, 1, 2, 0):
        any_lab.same(any_lab.run(engine, [any_lab.ask(PROMPT, adapters[i])])[0], alone[i])
    assert engine.stats().evictions == 6


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_of_a_lora_is_passed_over_when_it_is_served(lab, option):
    """Options unread and another LoRA served with 200 (rsLoRA: sglang #40835; patterns and DoRA: LoRAX, TGI)."""
    options, without = OPTIONS[option]
    digest, plain = lab.adapter("lora", 5, **options), lab.adapter("lora", 5, **{**options, **without})
    served = scored(lab, digest)
    assert (served - scored(lab, plain)).abs().max() > 10 * 2e-4
    text = torch.tensor(lab.tokens(PROMPT))
    torch.testing.assert_close(
        served, by_whole_pass(lab.backbone, lab.source.adapters[digest], text), rtol=0, atol=2e-4
    )


def test_rslora_is_scaled_by_the_root_of_the_rank(any_lab):
    """4 / sqrt(4) = 8 / 4: the same bits, so that the scale is shown and not only a difference (TensorRT-LLM #1668)."""
    root, plain = (
        any_lab.adapter("lora", 5, rank=4, alpha=4.0, rslora=True),
        any_lab.adapter("lora", 5, rank=4, alpha=8.0),
    )
    assert torch.equal(scored(any_lab, root), scored(any_lab, plain))


def test_an_alpha_pattern_is_the_alpha_of_what_it_names(any_lab):
    """A pattern that names everything is that alpha: LoRAX, TGI and SGLang leave it unread."""
    named = any_lab.adapter("lora", 5, rank=4, targets=("q_proj", "v_proj"), alpha_pattern={"q_proj": 32, "v_proj": 32})
    plain = any_lab.adapter("lora", 5, rank=4, targets=("q_proj", "v_proj"), alpha=32.0)
    assert torch.equal(scored(any_lab, named), scored(any_lab, plain))


def test_heads_of_several_sizes_in_one_batch_are_each_their_own(any_lab):
    """A row read by the head of another adapter, or all heads of one size (peft #1960, #1967, #2136)."""
    sizes, methods = [2, 7, 3, 1, 5, 2], ["lora", "none", "lora", "prefix", "none", "ia3"]
    adapters = [
        any_lab.adapter(method, i, contract=head_of(size))
        for i, (size, method) in enumerate(zip(sizes, methods, strict=True))
    ]
    requests = [any_lab.pool(PROMPT, adapter) for adapter in adapters * 2]
    for answer, size, request in zip(any_lab.run(any_lab.engine(), requests), sizes * 2, requests, strict=True):
        assert answer.logits.shape == (size,)
        alone = any_lab.run(any_lab.engine(), [request])[0].logits
        tolerance = 0.0 if any_lab.backbone.dtype == torch.bfloat16 else 2e-4
        torch.testing.assert_close(answer.logits, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "llama_adapter", "bottleneck"])
def test_a_pooled_answer_is_read_through_the_adapter_and_not_from_the_base(lab, method):
    """Pooling workers that ignore the adapter and return the base's vectors with 200 (dynamo PR #14111)."""
    embed = Contract(output_head=OutputHead.EMBED)
    worn, base = lab.adapter(method, 3, contract=embed), lab.adapter("none", 3, contract=embed)
    through, bare = (answer.logits for answer in lab.run(lab.engine(), [lab.pool(PROMPT, a) for a in (worn, base)]))
    assert (through - bare).abs().max() > 10 * 2e-4
    expected = by_whole_pass(lab.backbone, lab.source.adapters[worn], torch.tensor(lab.tokens(PROMPT)))
    torch.testing.assert_close(through, expected, rtol=0, atol=2e-4)


def test_more_adapters_than_slots_and_rows_of_the_base_are_all_answered(lab):
    """N adapters and one request to the base kill the scheduler for good (sglang #23141)."""
    adapters = [lab.adapter("lora", seed, rank=4) for seed in range(6)]
    requests = [lab.ask(PROMPT, adapter) for adapter in [*adapters, None, *adapters, None]]
    alone = [lab.run(lab.engine(), [request])[0] for request in requests[:7]] * 2
    probe = lab.engine()
    lab.run(probe, [requests[0]])
    engine = lab.engine(adapter_bytes=2 * probe.bank.used, max_rows=3)
    for _ in range(2):
        for answer, expected in zip(lab.run(engine, requests), alone, strict=True):
            lab.same(answer, expected)


def test_threads_that_ask_for_other_adapters_at_once_each_get_their_own(lab):
    """One adapter set for the whole process while another thread generates (peft #804, #973)."""
    requests = [lab.ask(PROMPT, adapter) for adapter in lab.zoo()] * 2
    alone = [lab.run(lab.engine(), [request])[0] for request in requests]
    start = threading.Barrier(len(requests))
    with EngineThread(lab.engine(max_rows=5)) as thread, ThreadPoolExecutor(len(requests)) as pool:

        def ask(request):
            start.wait(30)
            return thread.submit(request).result()

        answers = list(pool.map(ask, requests))
    for answer, expected in zip(answers, alone, strict=True):
        lab.same(answer, expected)


def test_rows_of_the_bare_backbone_run_no_adapters_code(lab, monkeypatch):
    """Base-only traffic slowed by adapters that nobody wears (vllm #9143, #3219)."""
    engine = lab.engine()
    loaded = [engine.warm(adapter) for adapter in lab.zoo() if adapter]
    lab.drain(engine)
    assert all(done.result() for done in loaded)
    dresser, worn = engine.scheduler.forward.dresser, []
    dress = dresser.dress
    monkeypatch.setattr(dresser, "dress", lambda *args: worn.append(dress(*args)) or worn[-1])
    lab.run(engine, [lab.ask(PROMPT), lab.ask("another")])
    assert worn
    assert all(sites is BARE for sites in worn)


def test_the_page_names_only_tests_that_exist():
    """A row of the page whose test was renamed would promise what nothing shows."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for path, test in named:
        text = (PAGE.parents[1] / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{path}::{test}"
