"""A fresh adapter that starts from zero leaves every logit bit-equal when served; one that cannot says so."""

from dataclasses import replace

import pytest
import torch

from umbel.adapters import catalog
from umbel.adapters.adapter import fresh_adapter
from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.shape import LINEARS

PROMPT = "a prompt that is read in chunks of sixteen tokens"
GENERATE = Contract(output_head=OutputHead.GENERATE)
OPTIONS = {
    "lora": [
        {},
        {"rank": 64, "rslora": True},
        {"rank": 4, "dora": True},
        {"rank": 4, "targets": (*LINEARS, "lm_head", "embed_tokens")},
        {"rank": 4, "lora_bias": True, "bias": "all"},
    ],
    "llama_adapter": [{}, {"per_head_gate": True}, {"length": 3, "layers": 2}],
}
REPLACING = [{"token_rows": (104, 105)}, {"full_copies": ("embed_tokens", "lm_head")}, {"lm_head_rows": (104, 105)}]
"""What LoRA puts in place of the backbone's own: equal rows, multiplied anew."""
STARTS = {name: method.zero_start for name, method in catalog.methods().items()}
FROM_ZERO = [(name, options) for name, zero in STARTS.items() if zero for options in OPTIONS.get(name, [{}])]


def fresh(lab, method, options, contract=GENERATE):
    """As training starts: initialised from the backbone, not trained a step."""
    backbone = lab.backbone
    made = fresh_adapter(method, options, contract, backbone.shape, backbone=backbone.fingerprint, seed=1)
    made.weights.initialise(list(backbone.decoder.layers), lambda *_: None, backbone.decoder)
    digest = digest_bytes(repr((method, options, contract)).encode())
    lab.source.adapters[digest] = replace(made, digest=digest, name=f"{method}:1")
    return digest


def asked(lab, adapter):
    """Log-probabilities of every token of the vocabulary for ten tokens, and of the prompt's own, in chunks."""
    request = lab.ask(PROMPT, adapter, echo=True, logprobs=lab.backbone.shape.vocab)
    (answer,) = lab.run(lab.engine(step_tokens=16), [request])
    places = [*answer.prompt[1:], *answer.tokens]
    top = [sorted((other.token, other.logprob) for other in place.top) for place in places]
    return answer.ids, torch.tensor([place.logprob for place in places]), torch.tensor(top)


@pytest.mark.parametrize(("method", "options"), FROM_ZERO, ids=str)
def test_a_fresh_adapter_that_starts_from_zero_changes_no_bit(any_lab, method, options):
    ids, own, every = asked(any_lab, fresh(any_lab, method, options))
    bare_ids, bare_own, bare_every = asked(any_lab, None)
    assert every.shape == (len(PROMPT) - 1 + 10, any_lab.backbone.shape.vocab, 2)
    assert ids == bare_ids
    assert torch.equal(own, bare_own)
    assert torch.equal(every, bare_every)


@pytest.mark.parametrize("options", REPLACING, ids=str)
def test_fresh_copies_of_the_backbones_rows_differ_by_rounding_only(lab, options):
    """Another product of the same numbers: fp32 sums of another order."""
    ids, own, _ = asked(lab, fresh(lab, "lora", {"rank": 4, **options}))
    bare_ids, bare_own, _ = asked(lab, None)
    assert ids == bare_ids
    torch.testing.assert_close(own, bare_own, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", [name for name, zero in STARTS.items() if not zero])
def test_a_fresh_adapter_that_cannot_start_from_zero_says_so_in_the_catalog(lab, method):
    _, own, _ = asked(lab, fresh(lab, method, {"length": 5}))
    assert (own - asked(lab, None)[1]).abs().max() > 10 * 2e-4


@pytest.mark.parametrize("method", [name for name, zero in STARTS.items() if zero])
def test_under_an_output_head_the_states_are_the_backbones_own(any_lab, method):
    embed = Contract(output_head=OutputHead.EMBED)
    worn, bare = (fresh(any_lab, name, {}, embed) for name in (method, "none"))
    answers = [any_lab.run(any_lab.engine(), [any_lab.pool(PROMPT, digest)])[0].logits for digest in (worn, bare)]
    assert torch.equal(*answers)


def test_one_trained_step_away_from_zero_shows(lab):
    """Otherwise the tests above would pass for adapters that are not applied at all."""
    digest = fresh(lab, "lora", {"rank": 4})
    for tensor in lab.source.adapters[digest].weights.tensors.values():
        tensor += 1e-2
    assert not torch.equal(asked(lab, digest)[1], asked(lab, None)[1])
