"""What an adapter costs the backbone: forgetting on the probe, bytes and time in serving."""

import json
import math
from importlib.resources import files

import pytest
import torch

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract
from umbel.evaluation.forgetting import Probe
from umbel.evaluation.serving_cost import ServingCost, bank_bytes, serving_cost, within

METHODS = {
    "lora": {"rank": 2, "targets": ("q_proj", "down_proj", "lm_head")},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "llama_adapter": {"length": 3},
    "ia3": {},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("forget") / "tiny"), dtype="fp64")


def adapter_of(backbone, method, *, noise, head="classify"):
    contract = Contract(output_head=head, labels=("a", "b") if head == "classify" else ())
    made = fresh_adapter(method, METHODS[method], contract, backbone.shape, backbone=backbone.fingerprint, seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in made.weights.tensors.items():
        made.weights.tensors[name] = tensor + noise * torch.randn(tensor.shape, generator=generator)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_the_perplexity_is_that_of_each_text_alone_with_the_adapter_on(backbone, method):
    adapter = adapter_of(backbone, method, noise=0.3)
    probe = Probe(backbone)
    found = probe.of(adapter)
    total = count = 0.0
    for example in probe._texts:
        logprobs = _alone(backbone, adapter, example.ids.tolist())
        total -= sum(float(logprobs[place - 1, token]) for place, token in enumerate(example.ids.tolist()) if place)
        count += len(example.ids) - 1
    assert found.on.perplexity == pytest.approx(math.exp(total / count), rel=1e-9)
    assert found.rise == pytest.approx(found.on.perplexity / Probe(backbone).of(None).off.perplexity - 1)
    assert abs(found.rise) > 1e-3
    assert found.on.accuracy == pytest.approx(_right_by_byte(backbone, adapter, probe))


def _right_by_byte(backbone, adapter, probe):
    """Share of facts whose first end is the likeliest per byte, each end asked alone."""
    facts = files("umbel.evaluation").joinpath("probe/facts.jsonl").read_text("utf-8").splitlines()
    ends = [end for fact in facts for end in json.loads(fact)["answers"]]
    per_byte = []
    for end, example in zip(ends, probe._ends, strict=True):
        ids = example.ids.tolist()
        logprobs = _alone(backbone, adapter, ids)
        first = len(ids) - len(backbone.tokenizer.encode(end))
        per_byte.append(
            sum(float(logprobs[place - 1, ids[place]]) for place in range(first, len(ids))) / len(end.encode())
        )
    choices = [per_byte[start : start + 3] for start in range(0, len(per_byte), 3)]
    return sum(max(three) == three[0] for three in choices) / len(choices)


@torch.no_grad()
def _alone(backbone, adapter, ids):
    virtual = adapter.weights.num_virtual
    tokens = torch.tensor([[0] * virtual + ids])
    worn = fuse_all([adapter], list(backbone.decoder.layers), dtype=backbone.dtype)
    wanted = torch.arange(virtual, tokens.shape[1])
    step = whole_step(
        wear(worn, [0]), rows=1, tokens=tokens.shape[1], offsets=torch.tensor([adapter.weights.num_past]), want=wanted,
        want_sites=wear([each for each in worn if any(layer == -1 for layer, _ in each.stack)], [0] * len(wanted)),
    )  # fmt: skip
    return backbone.decoder(tokens, step).logits.log_softmax(-1)


def test_an_adapter_that_changes_nothing_forgets_nothing(backbone):
    found = Probe(backbone).of(adapter_of(backbone, "lora", noise=0.0))
    assert found.rise == 0.0
    assert found.on == found.off
    assert found.values["forgetting"] == 0.0


def test_the_bare_backbone_forgets_nothing(backbone):
    assert Probe(backbone).of(None).rise == 0.0


def test_the_right_end_of_every_fact_is_the_first_and_all_have_three(backbone):
    probe = Probe(backbone)
    assert len(probe._ends) == 3 * 40
    assert all(example.count >= 1 for example in probe._ends)


@pytest.mark.smol
def test_the_real_backbone_knows_far_more_of_the_general_task_than_chance():
    from umbel.backbone.installed import find
    from umbel.core.settings import Settings

    found = Probe(load_backbone(find(Settings.load(), "smollm2-135m-instruct").folder)).of(None)
    assert found.off.accuracy > 0.75
    assert 5 < found.off.perplexity < 60


def test_bytes_are_those_of_the_tensors_that_serving_multiplies_with(backbone):
    adapter = adapter_of(backbone, "lora", noise=0.1, head="generate")
    assert bank_bytes(adapter, backbone) == 8 * adapter.weights.num_parameters
    classifier = adapter_of(backbone, "lora", noise=0.1)
    assert bank_bytes(classifier, backbone) == bank_bytes(adapter, backbone) + classifier.head.nbytes


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_timed_beside_the_bare_backbone(backbone, method):
    cost = serving_cost(adapter_of(backbone, method, noise=0.1), backbone)
    assert min(cost.prompt_ms, cost.prompt_bare_ms, cost.decode_ms, cost.decode_bare_ms) > 0
    assert cost.bytes > 0
    assert cost.prompt_added_ms[0] <= cost.prompt_added_ms[1]


def test_what_is_timed_wears_the_adapter_in_every_other_run_and_leaves_nothing(backbone, monkeypatch):
    from umbel.engine import Engine

    asked, submit = [], Engine.submit_together
    monkeypatch.setattr(
        Engine, "submit_together", lambda self, requests, **how: asked.append(requests) or submit(self, requests, **how)
    )
    adapter = adapter_of(backbone, "lora", noise=0.1)
    serving_cost(adapter, backbone)
    assert [requests[0].adapter is None for requests in asked] == [False, True] * 20
    assert {(len(requests), len(requests[0].tokens)) for requests in asked} == {(2, 32), (8, 1)}
    assert adapter.contract.output_head == "classify"  # its own


def test_time_that_the_rounds_do_not_show_is_no_figure_and_never_below_zero():
    on, off = [5.0, 9.0, 5.2, 4.8, 5.1, 1.0, 5.0, 4.9, 5.3], [5.0] * 9
    noisy = within(on, off)
    assert noisy == pytest.approx((-0.2, 0.3))  # neither the 9.0 nor the 1.0
    times = {"prompt_ms": 4.9, "prompt_bare_ms": 5.0, "decode_ms": 8.0, "decode_bare_ms": 5.0}
    cost = ServingCost(bytes=1, **times, prompt_added_ms=noisy, decode_added_ms=within([8.0, *[8.1] * 8], off))
    assert cost.sentences == [
        "no measurable time (at most 0.3 ms) to a step of 2 prompts of 32 tokens (5.0 ms)",
        "3.1 ms (3.1 to 3.1) to a step of 8 rows (5.0 ms)",
    ]
    quicker = ServingCost(bytes=1, **times, prompt_added_ms=(-2.0, -1.0), decode_added_ms=(1.0, 4.0))
    assert quicker.sentences[0] == "no measurable time to a step of 2 prompts of 32 tokens (5.0 ms)"


@pytest.mark.parametrize(("middle", "told"), [(5.0, "4.0"), (0.2, "1.0"), (2.0, "2.0")])
def test_the_time_that_is_told_lies_inside_its_interval(middle, told):
    """The difference of two medians may lie outside the interval of the median difference."""
    times = {"prompt_ms": 5.0 + middle, "prompt_bare_ms": 5.0, "decode_ms": 5.0 + middle, "decode_bare_ms": 5.0}
    cost = ServingCost(bytes=1, **times, prompt_added_ms=(1.0, 4.0), decode_added_ms=(1.0, 4.0))
    assert all(sentence.startswith(f"{told} ms (1.0 to 4.0) to ") for sentence in cost.sentences)
