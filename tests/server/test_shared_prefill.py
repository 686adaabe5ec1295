"""Several adapters of method ``none`` in one request: one prefill, and each answers as itself."""

import itertools

import pytest
from prometheus_client.parser import text_string_to_metric_families

from umbel.adapters.head import HeadConfig

NUMBERS = itertools.count()
FORMS = {
    "classify": ("classify", {"labels": ("bad", "good")}, None),
    "score": ("regress", {}, None),
    "tag": ("tag", {"labels": ("O", "NAME")}, None),
    "embeddings": ("embed", {}, HeadConfig(outputs=16)),
}


@pytest.fixture(scope="module", params=list(FORMS))
def trunk(request, home, contract):
    """A route, and two adapters that it asks and that share the frozen trunk."""
    kind, fields, head = FORMS[request.param]
    names = [f"trunk-{request.param}-{seed}" for seed in (1, 2)]
    for seed, name in enumerate(names):
        home.publish(name, contract(kind, **fields), seed=80 + seed, method="none", head=head)
    return request.param, names


def unseen():
    """A text that begins like none before, so that no kept beginning saves anything."""
    return f"{next(NUMBERS):016} what a fine day"


def ask(client, route, model, input, **body):
    return client.post(f"/v1/{route}", json={"model": model, "input": input, **body})


def same(a, b):
    """Equal but for rounding: in fp32 a row's bits depend on how many rows are in its step (correctness rule 2)."""
    if isinstance(a, float):
        return a == pytest.approx(b, abs=2e-4)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def read(serving):
    return serving.thread.stats().prompt_tokens


def told(client, metric, **labels):
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == metric]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_a_text_is_read_once_and_each_answers_as_asked_singly(client, serving, trunk):
    (route, names), text, before = trunk, unseen(), read(serving)
    answer = ask(client, route, names, text)
    assert read(serving) - before == len(text)
    assert list(answer.json()["results"]) == names
    singly = {name: ask(client, route, name, text).json()["data"] for name in names}
    assert same(answer.json()["results"], singly)
    assert not same(singly[names[0]], singly[names[1]])


def test_usage_and_metrics_count_each_adapters_own_tokens(client, trunk):
    (route, names), text = trunk, unseen()
    before = [told(client, "umbel_prompt_tokens_total", adapter=name) for name in names]
    prefilled = told(client, "umbel_tokens_prefilled_total")
    usage = ask(client, route, names, text).json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == 2 * len(text)
    for name, tokens in zip(names, before, strict=True):
        assert told(client, "umbel_prompt_tokens_total", adapter=name) == tokens + len(text)
        assert told(client, "umbel_request_success_total", adapter=name, reason="stop") > 0
    assert told(client, "umbel_tokens_prefilled_total") == prefilled + len(text)


def test_the_headers_name_every_version_and_its_digest_in_order(client, home, trunk):
    route, names = trunk
    for order in (names, names[::-1]):
        headers = ask(client, route, order, "what a day").headers
        assert headers["x-umbel-adapter"] == ", ".join(f"{name}:1" for name in order)
        assert headers["x-umbel-digest"] == ", ".join(home.registry.resolve(name).digest for name in order)


def test_many_texts_are_each_read_once(client, serving, trunk):
    route, names = trunk
    texts = [unseen() + " and so on" * (i % 5) for i in range(80)]
    before = read(serving)
    answer = ask(client, route, names, texts).json()
    assert read(serving) - before == sum(map(len, texts))
    assert same(answer["results"], {name: ask(client, route, name, texts).json()["data"] for name in names})


def test_one_that_abstains_leaves_the_other_its_label(client, home, contract):
    home.publish("sure", contract("classify", labels=("a", "b")), seed=90, method="none")
    home.publish("unsure", contract("classify", labels=("c", "d"), abstain_below=1.0), seed=91, method="none")
    text = unseen()
    results = ask(client, "classify", ["unsure", "sure"], text).json()["results"]
    assert results["unsure"][0]["label"] is None
    assert results["sure"][0]["label"] in ("a", "b")
    assert same(results["sure"], ask(client, "classify", "sure", text).json()["data"])


def test_adapters_that_read_a_text_differently_are_each_asked_in_their_own_way(client, serving, home, contract):
    home.publish("plain", contract("classify", labels=("a", "b")), seed=92, method="none")
    home.publish("framed", contract("classify", labels=("a", "b"), template="Q: {text}"), seed=92, method="none")
    home.publish("short", contract("classify", labels=("a", "b"), max_length=8), seed=92, method="none")
    names, text, before = ["plain", "framed", "short", "mood"], unseen(), read(serving)
    answer = ask(client, "classify", names, text).json()
    lengths = [len(text), len(text) + 3, 8, 24]
    assert read(serving) - before == answer["usage"]["prompt_tokens"] == sum(lengths)
    assert [answer["results"][name][0]["truncated"] for name in names] == [False, False, True, True]
    assert same(answer["results"], {name: ask(client, "classify", name, text).json()["data"] for name in names})
