"""``/v1/experiments``: from creation to decision over HTTP, and who may."""

import pytest

from umbel.registry.records import Scope


@pytest.fixture(scope="module")
def keys(home):
    return {scope: home.registry.keys.create(f"r-{scope}", [scope])[1] for scope in Scope}


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


SPEC = {
    "arms": [{"name": "control", "model": "ab:1"}, {"name": "candidate", "model": "ab:2"}],
    "metrics": [{"name": "thumbs"}],
}


def test_an_experiment_lives_from_creation_to_decision_over_http(client, home, book, keys):
    promoter, reader = bearer(keys[Scope.PROMOTE]), bearer(keys[Scope.READ])
    made = client.post("/v1/experiments", json={"name": "whole", **SPEC}, headers=promoter)
    assert made.status_code == 201
    assert made.json()["created_by"] == "key:r-promote"
    assert "salt" not in made.json()
    assert client.post("/v1/experiments", json={"name": "whole", **SPEC}, headers=promoter).status_code == 409
    assert client.get("/v1/experiments/whole", headers=reader).json()["sentence"].startswith("too early")
    assert "whole" in [one["name"] for one in client.get("/v1/experiments?status=running").json()["data"]]
    assert client.post("/v1/experiments/whole/ramp", json={"share": 0.5}, headers=promoter).json()["share"] == 0.5
    refused = client.post("/v1/experiments/whole/decide", json={}, headers=promoter)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "undecided")
    stopped = client.post("/v1/experiments/whole/stop", json={"reason": "enough"}, headers=promoter)
    assert stopped.json()["status"] == "stopped"
    force = {"force": True, "winner": "candidate", "reason": "cheaper"}
    assert client.post("/v1/experiments/whole/decide", json=force, headers=promoter).status_code == 403
    done = client.post("/v1/experiments/whole/decide", json=force, headers=bearer(keys[Scope.ADMIN])).json()
    assert done["promoted"]["target"] == 2
    assert home.registry.aliases.history("ab")[-1].evidence == made.json()["id"]
    home.registry.aliases.promote("ab:1")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"arms": SPEC["arms"][:1]}, 400, "invalid_value"),
        ({"arms": [SPEC["arms"][0], {"name": "b", "model": "ab:9"}]}, 404, "version_not_found"),
        ({"arms": [{**arm, "weight": 0.6} for arm in SPEC["arms"]]}, 400, "invalid_weights"),
        ({"arms": [SPEC["arms"][0], {"name": "b", "model": "ab:1"}]}, 400, "same_version"),
        ({"arms": [SPEC["arms"][0], {"name": "b", "model": "mood:1"}]}, 400, "not_comparable"),
        ({"name": "ab"}, 409, "name_taken"),
        ({"name": "tiny"}, 409, "name_taken"),
        ({"share": 2}, 400, "invalid_value"),
        ({"traffic": 1}, 400, "unknown_field"),
        ({"metrics": [{"name": "error_rate"}]}, 400, "reserved_metric"),
    ],
)
def test_a_bad_experiment_is_refused_over_http(client, book, keys, changes, status, code):
    body = {"name": "bad", **SPEC, **changes}
    answer = client.post("/v1/experiments", json=body, headers=bearer(keys[Scope.PROMOTE]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_an_unknown_experiment_is_a_404_on_every_route(client, keys):
    admin = bearer(keys[Scope.ADMIN])
    for path, body in (("ramp", {"share": 1}), ("stop", {}), ("decide", {})):
        answer = client.post(f"/v1/experiments/nope/{path}", json=body, headers=admin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "experiment_not_found")
    assert client.get("/v1/experiments/nope").status_code == 404


def test_changing_an_experiment_needs_the_scope_promote_even_on_loopback(client, keys):
    for path in ("", "/x/ramp", "/x/stop", "/x/decide"):
        assert client.post(f"/v1/experiments{path}", json={}).status_code == 401
        answer = client.post(f"/v1/experiments{path}", json={}, headers=bearer(keys[Scope.PUBLISH]))
        assert answer.status_code == 403
