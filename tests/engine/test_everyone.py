"""One batch of everything: each row is its own single-adapter answer, prefill and decode, in any order.

Two oracles: the row's own solo run (rule 2: fp32 within 2e-4, bf16 bit-equal), and one whole pass without cache,
chunks, slots or company.
"""

import random

import pytest
import torch
from benchmarks.parity import by_whole_pass

from umbel.backbone.loading import load_backbone
from umbel.backbone.quantised import QUANTISED_SITES
from umbel.core.contract import Contract, OutputHead
from umbel.core.forms import FORMS

LABELS = ("a", "b", "c")
GENERATING = {
    "bare": None,
    "lora 4": ("lora", {"rank": 4}),
    "lora 8 rs": ("lora", {"rank": 8, "rslora": True}),
    "lora 64": ("lora", {"rank": 64, "targets": ("q_proj", "v_proj", "down_proj")}),
    "dora 4": ("lora", {"rank": 4, "dora": True}),
    "llama_adapter": ("llama_adapter", {"length": 5}),
    "prefix 5": ("prefix", {"length": 5}),
    "prefix 12": ("prefix", {"length": 12}),
    "prompt": ("prompt", {"length": 4}),
    "ia3": ("ia3", {}),
    "bottleneck": ("bottleneck", {"width": 6}),
}
READING = {
    "classifier": ("lora", {"rank": 4}, OutputHead.CLASSIFY),
    "classifier of the trunk": ("none", {}, OutputHead.CLASSIFY),
    "regressor": ("prefix", {"length": 5, "scale": 1.0}, OutputHead.REGRESS),
    "tagger": ("ia3", {}, OutputHead.TAG),
    "embedder": ("bottleneck", {"width": 6}, OutputHead.EMBED),
}
ORDERS = [None, 0, 1, 2]


def text_of(place):
    return f"row {place} " + "of everything " * (place % 4)


def everyone(lab):
    """Requests by name: every row of the issue's list, of several lengths."""
    asked = {}
    for place, (name, made) in enumerate(GENERATING.items()):
        adapter = made and lab.adapter(made[0], place, **made[1])
        asked[name] = lab.ask(text_of(place), adapter, echo=True, max_tokens=6 + place % 3)
    for place, (name, (method, options, head)) in enumerate(READING.items(), len(GENERATING)):
        labels = LABELS if head in (OutputHead.CLASSIFY, OutputHead.TAG) else ()
        adapter = lab.adapter(method, place, contract=Contract(output_head=head, labels=labels), **options)
        asked[name] = lab.pool(text_of(place), adapter)
    return asked


def logits_of(answer):
    """All numbers of an answer: the prompt's log-probabilities and the generated tokens', or the head's logits."""
    if answer.logits is not None:
        return answer.logits
    return torch.tensor([place.logprob for place in (*answer.prompt[1:], *answer.tokens)])


@pytest.mark.parametrize("order", ORDERS, ids=["in order", "shuffled", "few rows", "small chunks"])
def test_every_row_is_its_own_solo_run(any_lab, order):
    asked = everyone(any_lab)
    alone = {name: any_lab.run(any_lab.engine(), [request])[0] for name, request in asked.items()}
    names = list(asked) if order is None else random.Random(order).sample(list(asked), len(asked))
    options = {1: {"max_rows": 5}, 2: {"step_tokens": 24}}.get(order, {})
    engine = any_lab.engine(**options)
    answers = dict(zip(names, any_lab.run(engine, [asked[name] for name in names]), strict=True))
    tolerance = 0.0 if any_lab.backbone.dtype == torch.bfloat16 else 2e-4
    for name, expected in alone.items():
        assert answers[name].ids == expected.ids, name
        found = logits_of(answers[name])
        torch.testing.assert_close(found, logits_of(expected), rtol=0, atol=tolerance, msg=name)


def test_every_row_is_one_whole_pass_of_its_adapter_alone(lab):
    asked = everyone(lab)
    answers = dict(zip(asked, lab.run(lab.engine(step_tokens=40), list(asked.values())), strict=True))
    bare = lab.source.adapters[lab.adapter("none", 99)]
    for name, request in asked.items():
        adapter = bare if request.adapter is None else lab.source.adapters[request.adapter]
        text = torch.tensor([*request.tokens, *answers[name].ids])
        expected = by_whole_pass(lab.backbone, adapter, text)
        torch.testing.assert_close(logits_of(answers[name]), expected, rtol=0, atol=2e-4, msg=name)


def test_every_adapter_of_the_batch_moves_its_answer(lab):
    """By more than ten tolerances, or the tests above show nothing."""
    for name, request in everyone(lab).items():
        if request.adapter is None or name == "classifier of the trunk":
            continue
        adapter, text = lab.source.adapters[request.adapter], torch.tensor(request.tokens)
        worn, bare = (by_whole_pass(lab.backbone, adapter, text, bare=off) for off in (False, True))
        assert (worn - bare).abs().max() > 10 * 2e-4, name


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def quantised(lab, folder, form):
    """quantised(dtype): the lab on kernels of this form."""
    labs = []

    def make(dtype):
        labs.append(type(lab)(load_backbone(folder, dtype=dtype, packed=True, quantise=form)))
        return labs[-1]

    yield make
    for each in labs:
        each.close()


def test_on_quantised_linears_every_row_is_its_own_solo_run_bit_for_bit(quantised):
    lab = quantised("bf16")
    asked = everyone(lab)
    alone = {name: lab.run(lab.engine(), [request])[0] for name, request in asked.items()}
    names = random.Random(3).sample(list(asked), len(asked))
    answers = dict(zip(names, lab.run(lab.engine(step_tokens=24), [asked[name] for name in names]), strict=True))
    for name, expected in alone.items():
        torch.testing.assert_close(logits_of(answers[name]), logits_of(expected), rtol=0, atol=0, msg=name)


def test_on_quantised_linears_every_row_is_a_whole_pass_over_their_weights(quantised, folder, form):
    """The oracle is a plain backbone that holds the dequantised weights."""
    lab, plain = quantised("fp32"), load_backbone(folder, dtype="fp32")
    small = load_backbone(folder, dtype="fp32", quantise=form)
    for ours, theirs in zip(plain.decoder.layers, small.decoder.layers, strict=True):
        for site in QUANTISED_SITES:
            getattr(ours, site).weight.copy_(getattr(theirs, site).weight)
    asked = everyone(lab)
    answers = dict(zip(asked, lab.run(lab.engine(step_tokens=40), list(asked.values())), strict=True))
    bare, tolerance = lab.source.adapters[lab.adapter("none", 99)], 2e-4
    off = 0.0
    for name, request in asked.items():
        adapter = bare if request.adapter is None else lab.source.adapters[request.adapter]
        text = torch.tensor([*request.tokens, *answers[name].ids])
        found = logits_of(answers[name])
        torch.testing.assert_close(found, by_whole_pass(plain, adapter, text), rtol=0, atol=tolerance, msg=name)
        off = max(off, float((found - by_whole_pass(load_backbone(folder), adapter, text)).abs().max()))
    assert off > 10 * tolerance  # or quantising had changed nothing
