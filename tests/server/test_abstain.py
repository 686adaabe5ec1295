"""Answers that are kept back: the contract says below which probability, and a request may say otherwise."""

import pytest
import torch

from umbel.core.contract import Contract, OutputHead
from umbel.server.routes.classify import classified

THREE = Contract(output_head=OutputHead.CLASSIFY, labels=("a", "b", "c"), abstain_below=0.5)
SEVERAL = Contract(output_head=OutputHead.CLASSIFY, labels=("a", "b"), multi_label=True, threshold=0.3)


@pytest.fixture(scope="module")
def shy(home):
    """Never sure enough by its own contract."""
    contract = home.registry.versions.get("mood:1").contract
    home.publish("too-shy", contract.model_copy(update={"abstain_below": 1.0}), seed=4)
    return "too-shy"


def classify(client, model, **body):
    return client.post("/v1/classify", json={"model": model, "input": "what a day", **body})


def label_of(probs, contract, **how):
    return classified(0, torch.tensor(probs).log(), contract, truncated=False, **how)


def test_an_adapter_that_abstains_gives_no_label_but_its_probabilities(client, shy):
    (kept,), (given,) = (classify(client, model).json()["data"] for model in (shy, "mood"))
    assert (kept["label"], kept["abstained"]) == (None, True)
    assert (given["label"] in given["labels"], given["abstained"]) == (True, False)
    assert kept["probs"] == pytest.approx(given["probs"], abs=1e-4)


def test_a_request_overrides_the_contract_both_ways(client, shy):
    (given,) = classify(client, shy, abstain_below=0).json()["data"]
    assert (given["label"] in given["labels"], given["abstained"]) == (True, False)
    (kept,) = classify(client, "mood", abstain_below=1).json()["data"]
    assert (kept["label"], kept["abstained"]) == (None, True)


def test_several_models_each_keep_their_own_bound(client, shy):
    results = classify(client, [shy, "mood"]).json()["results"]
    assert [results[name][0]["abstained"] for name in (shy, "mood")] == [True, False]


def test_a_probability_at_the_bound_is_likely_enough():
    assert label_of([0.5, 0.25, 0.25], THREE).label == "a"
    assert label_of([0.49, 0.27, 0.24], THREE).label is None


def test_a_multi_label_answer_with_no_label_is_not_one_that_abstains():
    sure_of_none = classified(0, torch.tensor([-2.0, -3.0]), SEVERAL, truncated=False)
    assert (sure_of_none.label, sure_of_none.abstained) == ([], False)
    kept = classified(0, torch.tensor([0.1, -3.0]), SEVERAL, truncated=False, abstain_below=0.9)
    assert (kept.label, kept.abstained) == (None, True)


@pytest.mark.parametrize("bound", [-0.1, 1.1, "0.5", True, [0.5]])
def test_a_bound_that_is_no_probability_is_a_400(client, bound):
    answer = classify(client, "mood", abstain_below=bound)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "abstain_below")


def test_a_score_has_nothing_to_abstain_from(client):
    answer = client.post("/v1/score", json={"model": "stars", "input": "x", "abstain_below": 0.5})
    assert answer.json()["error"]["code"] == "unknown_field"
