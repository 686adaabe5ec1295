"""Failures of other servers that give 200 and a wrong answer, over HTTP; ``docs/silent-failures.md`` lists them all."""

import pytest

BODIES = {
    "completions": {"prompt": "hello"},
    "chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "classify": {"input": "hello"},
    "score": {"input": "hello"},
    "tag": {"input": "hello"},
    "embeddings": {"input": "hello"},
}
HEADS = {"classify": "classify", "score": "regress", "tag": "tag", "embeddings": "embed"}


def post(client, route, model, **body):
    return client.post(f"/v1/{route}", json={"model": model, **BODIES[route], **body})


def numbers(value):
    """All floats of an answer, in order."""
    if isinstance(value, dict):
        return [number for key in value for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


def far(one, other):
    return max(abs(a - b) for a, b in zip(numbers(one), numbers(other), strict=True))


def labels_of(head):
    return {"labels": ("a", "b")} if head in ("classify", "tag") else {}


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("model", ["nope", "writer:99", "mood@nowhere"])
def test_no_route_answers_as_the_backbone_for_what_it_does_not_have(client, route, model):
    """The base's own answer with 200 where the adapter is unknown (vllm #39278, transformers #36480)."""
    answer = post(client, route, model)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    assert "x-umbel-digest" not in answer.headers


@pytest.mark.parametrize("route", HEADS)
def test_a_pooled_answer_is_the_adapters_and_not_the_bases(client, home, contract, route):
    """Pooling workers that ignore the adapter and return 200 with the base's vectors (dynamo PR #14111)."""
    head = HEADS[route]
    for name, method in ((f"worn-{head}", "lora"), (f"base-{head}", "none")):
        home.publish(name, contract(head, **labels_of(head)), seed=70, method=method)
    through, bare = (post(client, route, f"{name}-{head}").json()["data"] for name in ("worn", "base"))
    assert far(through, bare) > 10 * 2e-4


def test_a_promoted_version_answers_from_the_next_request_and_the_old_one_by_its_number(client, home, contract):
    """A reload under the same name goes on answering from the old one (vllm #42125, #30931; Tinker's stale client)."""
    for seed in (71, 72):
        home.publish("reloaded", contract("classify", labels=("a", "b")), seed=seed)
    old, new = (post(client, "classify", f"reloaded:{number}") for number in (1, 2))
    assert far(old.json()["data"], new.json()["data"]) > 10 * 2e-4
    assert post(client, "classify", "reloaded").headers["x-umbel-digest"] == old.headers["x-umbel-digest"]
    home.registry.aliases.promote("reloaded:2")
    after = post(client, "classify", "reloaded")
    assert after.headers["x-umbel-digest"] == new.headers["x-umbel-digest"] != old.headers["x-umbel-digest"]
    assert far(after.json()["data"], new.json()["data"]) < 2e-4
    assert far(post(client, "classify", "reloaded:1").json()["data"], old.json()["data"]) < 2e-4


def test_every_answer_says_which_bytes_gave_it(client, home):
    """Identity is a name or a number elsewhere: two weights under one name cannot be told apart (vllm #30931)."""
    asked = {"writer": "completions", "talker": "chat/completions", "mood": "classify", "stars": "score"}
    for model, route in {**asked, "names": "tag", "vector": "embeddings"}.items():
        headers = post(client, route, model).headers
        assert headers["x-umbel-adapter"] == f"{model}:1"
        assert headers["x-umbel-digest"] == home.registry.resolve(model).digest
