"""Loading and dropping adapters by hand, over HTTP."""

import threading

import pytest

from umbel.registry.records import Scope

WARM = "/v1/adapters/wanted/warm"
UNLOAD = "/v1/adapters/wanted/unload"


@pytest.fixture(scope="module")
def keys(home):
    return {scope: home.registry.keys.create(f"r-{scope}", [scope])[1] for scope in Scope}


@pytest.fixture(scope="module")
def may(keys):
    return bearer(keys[Scope.PUBLISH])


@pytest.fixture(scope="module")
def wanted(home):
    contract = home.registry.versions.get("mood:1").contract
    return [home.publish("wanted", contract, seed=seed).digest for seed in (71, 72)]


@pytest.fixture
def cold(client, may, wanted):
    for version in (1, 2):
        client.post(UNLOAD, json={"version": version}, headers=may)
    return wanted


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def resident(client):
    return {one["digest"]: one["adapter"] for one in client.get("/v1/status").json()["resident"]}


def test_a_version_is_resident_under_its_name_before_its_first_request(client, may, cold):
    answer = client.post(WARM, json={}, headers=may)
    told = {"adapter": "wanted:1", "digest": cold[0], "resident": True, "changed": True}
    assert (answer.status_code, answer.json()) == (200, told)
    assert resident(client)[cold[0]] == "wanted:1"
    answer = client.post("/v1/classify", json={"model": "wanted", "input": "hello"})
    assert "load;dur=0.0" in answer.headers["server-timing"]
    assert not client.post(WARM, json={}, headers=may).json()["changed"]


def test_warm_and_unload_need_no_body_and_then_mean_the_champion(client, may, cold):
    for path, there in ((WARM, True), (UNLOAD, False)):
        answer = client.post(path, headers=may)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["adapter"], answer.json()["changed"]) == ("wanted:1", True)
        assert (cold[0] in resident(client)) is there


def test_it_may_be_named_by_number_alias_or_digest(client, may, cold, home):
    home.registry.aliases.set("wanted:2", "canary")
    for which in (2, "2", "canary", cold[1]):
        assert client.post(WARM, json={"version": which}, headers=may).json()["adapter"] == "wanted:2"
        assert client.post(UNLOAD, json={"version": which}, headers=may).json()["changed"]
    assert cold[1] not in resident(client)


def test_what_was_unloaded_answers_as_before(client, may, cold):
    ask = {"model": "wanted", "input": "hello"}
    before = client.post("/v1/classify", json=ask).json()
    assert client.post(UNLOAD, json={}, headers=may).json()["resident"] is False
    assert cold[0] not in resident(client)
    assert client.post("/v1/classify", json=ask).json() == before


def test_a_yanked_version_can_be_unloaded_but_not_warmed(client, may, cold, home):
    client.post(WARM, json={"version": 2}, headers=may)
    home.registry.versions.yank("wanted:2", reason="wrong")
    try:
        assert client.post(UNLOAD, json={"version": 2}, headers=may).json()["changed"]
        answer = client.post(WARM, json={"version": 2}, headers=may)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "version_yanked")
    finally:
        home.registry.versions.unyank("wanted:2")


def test_a_version_that_a_row_wears_is_a_409_that_says_when_to_come_back(client, may, serving, wait_until):
    asked = {"model": "rhymer", "prompt": "hello", "max_tokens": 500, "ignore_eos": True, "stream": True}
    asking = threading.Thread(target=client.post, args=("/v1/completions",), kwargs={"json": asked})
    asking.start()
    wait_until(lambda: serving.thread.stats().adapters_worn)
    answer = client.post("/v1/adapters/rhymer/unload", json={}, headers=may)
    asking.join(60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "adapter_in_use")
    assert answer.headers["retry-after"] == "1"
    assert "rhymer:1" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/adapters/nope/warm", {}, 404, "adapter_not_found"),
        ("/v1/adapters/tiny/warm", {}, 404, "adapter_not_found"),
        (WARM, {"version": 9}, 404, "version_not_found"),
        (WARM, {"version": "nobody"}, 404, "alias_not_found"),
        (WARM, {"version": "../x"}, 400, "invalid_alias"),
        (WARM, {"version": 0}, 400, "invalid_value"),
        (WARM, {"timeout": 0}, 400, "invalid_value"),
        (WARM, {"timeout": 1e9}, 400, "invalid_value"),
        (WARM, {"force": True}, 400, "unknown_field"),
        ("/v1/adapters/nope/unload", {}, 404, "adapter_not_found"),
        (UNLOAD, {"version": 9}, 404, "version_not_found"),
        (UNLOAD, {"timeout": 3}, 400, "unknown_field"),
    ],
)
def test_what_cannot_be_done_says_why(client, may, wanted, path, body, status, code):
    answer = client.post(path, json=body, headers=may)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", [WARM, UNLOAD])
def test_only_those_who_may_publish_decide_what_is_in_memory(client, keys, wanted, path):
    assert client.post(path, json={}).status_code == 401
    for scope in (Scope.READ, Scope.INFER, Scope.PROMOTE, Scope.TRAIN):
        answer = client.post(path, json={}, headers=bearer(keys[scope]))
        assert answer.json()["error"]["code"] == "insufficient_scope", scope
    assert client.post(path, json={}, headers=bearer(keys[Scope.ADMIN])).status_code == 200


def test_a_load_that_takes_too_long_is_told_and_goes_on(client, may, cold, serving, wait_until, monkeypatch):
    engine = serving.thread.engine
    fetch, gate = engine.scheduler.loader._source.fetch, threading.Event()
    monkeypatch.setattr(engine.scheduler.loader, "_source", Slow(fetch, gate))
    try:
        answer = client.post(WARM, json={"timeout": 0.01}, headers=may)
    finally:
        gate.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "warm_timeout")
    wait_until(lambda: cold[0] in resident(client))


class Slow:
    """A source that waits for a word before it hands anything out."""

    def __init__(self, fetch, gate):
        self.wrapped, self.gate = fetch, gate

    def fetch(self, digest):
        assert self.gate.wait(30)
        return self.wrapped(digest)
