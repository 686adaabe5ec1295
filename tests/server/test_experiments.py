"""An experiment's name as ``model``: who gets which arm, what is written before the answer, and what feedback does."""

import sqlite3
import string
from contextlib import closing

import pytest
from starlette.testclient import TestClient

from umbel.core.errors import Unavailable
from umbel.core.wire.experiments import DecideRequest
from umbel.engine import Finished, Timing
from umbel.experiments.live import split_of
from umbel.registry.records import Scope
from umbel.server import enrolling
from umbel.server.app import create_app
from umbel.server.assembly import make_service, preload
from umbel.server.enrolling import Enrolment
from umbel.server.service import ServerConfig

ARMS = {"control": "ab:1", "candidate": "ab:2"}


@pytest.fixture(scope="module")
def keys(home):
    return {scope: home.registry.keys.create(f"e-{scope}", [scope])[1] for scope in Scope}


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def ask(client, name, unit=None, **fields):
    headers = fields.pop("headers", {}) | ({"x-experiment-unit": unit} if unit else {})
    return client.post(
        "/v1/completions", json={"model": name, "prompt": "hello", "max_tokens": 2, **fields}, headers=headers
    )


def exposed(book, name):
    return book.report(name).sample_ratio.observed


def unit_of(book, name, arm):
    """A unit that the split gives that arm."""
    split = split_of(book.registry.experiments.get(name))
    return next(unit for unit in (f"u{index}" for index in range(1000)) if split.arm(unit) == arm)


def effect(book, name, metric):
    return next(one for one in book.report(name).effects if one.metric == metric)


def test_an_answer_says_which_arm_and_version_gave_it(client, book, begin):
    name = begin()
    for arm, version in ARMS.items():
        answer = ask(client, name, unit_of(book, name, arm))
        assert answer.status_code == 200
        assert answer.headers["x-umbel-experiment"] == name
        assert answer.headers["x-umbel-arm"] == arm
        assert answer.headers["x-umbel-adapter"] == version
        assert answer.headers["x-umbel-digest"] == book.registry.resolve(version).digest
        assert answer.headers["x-umbel-assignment"] == "sticky; unit=header"
        assert answer.json()["choices"] == ask(client, version).json()["choices"]
    assert exposed(book, name) == {"control": 1, "candidate": 1}


def test_an_arm_stays_with_its_unit_through_promotes_and_a_new_server(client, serving, home, book, begin):
    name = begin()
    first = {unit: ask(client, name, unit).headers["x-umbel-adapter"] for unit in string.ascii_letters[:40]}
    assert set(first.values()) == {"ab:1", "ab:2"}  # all of one arm: once in 2^39
    home.registry.aliases.promote("ab:2")
    service = make_service(home.backbone, home.registry, serving.thread, serving.service.capacity, ServerConfig())
    with TestClient(create_app(service), base_url="http://localhost") as again:
        assert {unit: ask(again, name, unit).headers["x-umbel-adapter"] for unit in first} == first
    home.registry.aliases.promote("ab:1")
    assert sum(exposed(book, name).values()) == 40


def test_the_unit_is_the_header_then_the_safety_identifier_then_the_key_then_the_request(
    serving, home, book, begin, keys
):
    config = ServerConfig(require_keys=True)
    service = make_service(home.backbone, home.registry, serving.thread, serving.service.capacity, config)
    client, name = TestClient(create_app(service), base_url="http://localhost"), begin()
    key = bearer(keys[Scope.INFER])
    for unit, fields, source in (
        ("ada", {"safety_identifier": "bob"}, "header"),
        (None, {"safety_identifier": "bob"}, "safety_identifier"),
        (None, {"safety_identifier": " "}, "key"),
        (" ", {}, "key"),
    ):
        answer = ask(client, name, unit, headers=key, **fields)
        assert answer.headers["x-umbel-assignment"] == f"sticky; unit={source}"
    for unit in ("ada", "bob", "key:e-infer"):
        assert book.registry.experiments.assigned(name, unit), unit
    assert sum(exposed(book, name).values()) == 3


def test_without_any_unit_each_request_is_one_and_the_answer_says_that_it_is_not_sticky(client, book, begin):
    name = begin()
    answers = [ask(client, name, headers={"x-request-id": "always-the-same"}) for _ in range(12)]
    assert {answer.headers["x-umbel-assignment"] for answer in answers} == {"not-sticky; unit=request"}
    assert {answer.headers["x-umbel-arm"] for answer in answers} == {"control", "candidate"}
    assert sum(exposed(book, name).values()) == 12


def test_a_key_that_nobody_checked_is_no_unit(client, begin):
    """On loopback any word is let through as a key, and SDKs always send one: it would put all traffic in one arm."""
    assert ask(client, begin(), headers=bearer("none")).headers["x-umbel-assignment"] == "not-sticky; unit=request"


def test_every_route_that_answers_takes_experiments(client, book, begin):
    for model, path in (("mood:1", "classify"), ("stars:1", "score"), ("names:1", "tag"), ("vector:1", "embeddings")):
        name = begin(arms={"a": model, "b": model}, aa=True)
        answer = client.post(f"/v1/{path}", json={"model": name, "input": "hello you", "safety_identifier": "ada"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-umbel-arm"] == book.registry.experiments.assigned(name, "ada")
        assert answer.json()["model"] == answer.headers["x-umbel-adapter"] == model
    name = begin(arms={"a": "talker:1", "b": "talker:1"}, aa=True)
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "safety_identifier": "ada", "max_tokens": 2}
    plain, streamed = (client.post("/v1/chat/completions", json={**body, "stream": on}) for on in (False, True))
    assert plain.headers["x-umbel-arm"] == streamed.headers["x-umbel-arm"]
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_an_experiment_may_stand_among_several_models_but_only_one(client, begin):
    arms = {"a": "mood:1", "b": "mood:1"}
    one, two = begin(arms=arms, aa=True), begin(arms=arms, aa=True)
    body, unit = {"model": ["mood:1", one], "input": "x"}, {"x-experiment-unit": "ada"}
    answer = client.post("/v1/classify", json=body, headers=unit)
    assert answer.headers["x-umbel-experiment"] == one
    assert set(answer.json()["results"]) == {"mood:1", one}
    refused = client.post("/v1/classify", json=body | {"model": [one, two]}, headers=unit)
    assert refused.json()["error"]["code"] == "one_experiment"


def test_a_wrong_route_exposes_nobody(client, book, begin):
    name = begin()
    answer = client.post("/v1/classify", json={"model": name, "input": "x"}, headers={"x-experiment-unit": "ada"})
    assert answer.json()["error"]["code"] == "wrong_route"
    assert sum(exposed(book, name).values()) == 0


def test_outside_the_ramp_the_control_answers_and_nobody_is_exposed(client, book, begin):
    name = begin(share=0.0)
    answer = ask(client, name, "ada")
    assert answer.headers["x-umbel-adapter"] == "ab:1"
    assert answer.headers["x-umbel-assignment"] == "outside; unit=header"
    assert "x-umbel-arm" not in answer.headers
    assert sum(exposed(book, name).values()) == 0
    book.ramp(name, 1.0)
    assert "x-umbel-arm" in ask(client, name, "ada").headers


def test_a_stopped_experiment_answers_with_its_control(client, book, begin):
    name = begin()
    unit = unit_of(book, name, "candidate")
    assert ask(client, name, unit).headers["x-umbel-adapter"] == "ab:2"
    book.stop(name)
    answer = ask(client, name, unit)
    assert answer.headers["x-umbel-adapter"] == "ab:1"
    assert answer.headers["x-umbel-assignment"] == "stopped"
    assert "x-umbel-arm" not in answer.headers


def test_a_decided_experiment_answers_with_its_winner(client, book, begin):
    name = begin()
    book.decide(name, DecideRequest(force=True, winner="candidate", reason="x", promote=False))
    answer = ask(client, name, unit_of(book, name, "control"))
    assert answer.headers["x-umbel-adapter"] == "ab:2"
    assert answer.headers["x-umbel-assignment"] == "decided"


def test_one_that_is_stopped_between_look_and_exposure_answers_with_its_control(client, book, begin, monkeypatch):
    name = begin()

    def stopped_meanwhile(registry, experiment, unit, **given):
        if book.registry.experiments.get(name).status == "running":
            book.stop(name)
        return really(registry, experiment, unit, **given)

    really = enrolling.assign
    monkeypatch.setattr(enrolling, "assign", stopped_meanwhile)
    answer = ask(client, name, unit_of(book, name, "candidate"))
    assert (answer.status_code, answer.headers["x-umbel-adapter"]) == (200, "ab:1")
    assert answer.headers["x-umbel-assignment"] == "stopped"


def test_the_exposure_is_there_before_the_engine_is_asked(client, serving, book, begin, monkeypatch):
    name, seen = begin(), []
    submit = serving.service.engine.submit

    def looking(request):
        seen.append(book.registry.experiments.assigned(name, "ada"))
        return submit(request)

    monkeypatch.setattr(serving.service.engine, "submit", looking)
    answer = ask(client, name, "ada")
    assert seen == [answer.headers["x-umbel-arm"]]


def test_an_arm_that_cannot_answer_stays_in_its_own_denominator(client, home, book, begin, wait_until):
    like = home.registry.versions.get("rhymer:1").contract
    home.publish("frail", like, seed=71)
    broken = home.publish("frail", like, seed=72)
    blob = home.registry.store.path(broken.weights_sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    name = begin(arms={"control": "frail:1", "candidate": "frail:2"})
    assert ask(client, name, unit_of(book, name, "control")).status_code == 200
    failed = ask(client, name, unit_of(book, name, "candidate"))
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "artifact_corrupt")
    assert exposed(book, name) == {"control": 1, "candidate": 1}
    wait_until(lambda: effect(book, name, "error_rate").n == 1)
    found = effect(book, name, "error_rate")
    assert (found.mean, found.mean_control) == (1.0, 0.0)
    assert effect(book, name, "time_to_first_token").n == 0
    assert effect(book, name, "time_to_first_token").mean_control > 0


def test_a_yanked_arm_is_an_error_that_says_so_never_another_version(client, home, book, begin):
    like = home.registry.versions.get("rhymer:1").contract
    for seed in (73, 74):
        home.publish("leaky", like, seed=seed)
    name = begin(arms={"control": "leaky:1", "candidate": "leaky:2"})
    home.registry.versions.yank("leaky:2", reason="leaks")
    answer = ask(client, name, unit_of(book, name, "candidate"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "version_yanked")
    assert "leaks" in answer.json()["error"]["message"]
    assert ask(client, name, unit_of(book, name, "control")).status_code == 200
    assert exposed(book, name) == {"control": 1, "candidate": 1}


def test_a_client_that_goes_away_says_nothing_about_the_arm():
    gone = Enrolment("x", "sticky", "header", "ada", "control")
    assert gone.outcomes(499) == []
    assert [one.value for one in gone.outcomes(503)] == [1.0]
    assert Enrolment("x", "outside", "header", "ada").outcomes(200) == []


def test_a_stream_that_breaks_off_is_an_error_though_its_status_was_200():
    enrolled = Enrolment("x", "sticky", "header", "ada", "control")
    enrolled.saw(Finished("stop", timing=Timing(queue_ms=10, load_ms=500, prefill_ms=20)))
    assert [(one.metric, one.value) for one in enrolled.outcomes(200)] == [
        ("error_rate", 0.0),
        ("time_to_first_token", pytest.approx(0.03)),  # without the load
    ]
    enrolled.saw(Finished("error", error=Unavailable("x")))
    assert [(one.metric, one.value) for one in enrolled.outcomes(200)] == [("error_rate", 1.0)]


def test_guardrails_that_cannot_be_written_hold_up_no_answer_and_are_reported(
    client, home, begin, monkeypatch, wait_until, caplog
):
    def down(_):
        raise Unavailable("no route to db.internal", code="database_unavailable")

    monkeypatch.setattr(home.registry.experiments, "outcomes", down)
    assert ask(client, begin(), "ada").status_code == 200
    wait_until(lambda: "2 guardrail measurements were not kept: database_unavailable" in caplog.text)


def test_an_exposure_that_cannot_be_written_is_a_503_with_retry_after(client, home, book, begin, monkeypatch):
    name = begin()

    def down(*_, **__):
        raise Unavailable("no route to db.internal", code="database_unavailable", retry_after=1.0)

    monkeypatch.setattr(home.registry.experiments, "expose", down)
    answer = ask(client, name, "ada")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "db.internal" not in answer.text
    assert ask(client, "ab:1").status_code == 200


def test_a_locked_database_holds_up_exposures_for_a_bounded_time_and_nothing_else(client, home, begin, monkeypatch):
    name = begin()
    monkeypatch.setattr(enrolling, "PATIENCE_SECONDS", 0.2)
    with closing(sqlite3.connect(home.settings.home / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer, ordinary = ask(client, name, "ada"), ask(client, "ab:1")
        other.execute("ROLLBACK")
    assert ordinary.status_code == 200
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "exposure_unavailable")
    assert answer.headers["retry-after"] == "1"


def test_a_unit_that_is_too_long_is_refused(client, begin):
    name = begin()
    answer = ask(client, name, "x" * 257)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_unit")
    assert ask(client, name, safety_identifier="x" * 257).status_code == 400
    assert ask(client, name, "x" * 256).status_code == 200


def test_models_lists_the_experiments_that_run_and_shows_what_answers_for_the_others(client, book, begin):
    name = begin()
    listed = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert listed[name]["arms"] == ARMS
    assert listed[name]["output_head"] == "generate"
    assert client.get(f"/v1/models/{name}").json() == listed[name]
    book.stop(name)
    assert name not in {one["id"] for one in client.get("/v1/models").json()["data"]}
    assert client.get(f"/v1/models/{name}").json()["root"] == "ab:1"


def test_preloading_an_experiment_loads_all_its_arms(client, serving, home, begin):
    like = home.registry.versions.get("rhymer:1").contract
    digests = {home.publish("cold", like, seed=seed).digest for seed in (75, 76)}
    name = begin(arms={"control": "cold:1", "candidate": "cold:2"})
    assert not digests & set(serving.thread.stats().adapters)
    client.portal.call(preload, serving.service, [name])
    assert digests <= set(serving.thread.stats().adapters)


def test_an_experiment_of_another_backbone_is_refused_by_name(client, home, begin):
    contract = home.registry.versions.get("rhymer:1").contract
    for weights in (b"1", b"2"):
        home.registry.publish(
            {"adapter_model.safetensors": weights}, name="foreign", method="lora", config={}, contract=contract,
            backbone="sha256:" + "7" * 64,
        )  # fmt: skip
    name = begin(arms={"control": "foreign:1", "candidate": "foreign:2"})
    answer = ask(client, name, "ada")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "backbone_mismatch")
    assert name not in {one["id"] for one in client.get("/v1/models").json()["data"]}
