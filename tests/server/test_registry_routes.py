from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from umbel.core.clock import now_ms
from umbel.registry.records import Scope
from umbel.server.queries import OPENAI, parameters
from umbel.server.security import PUBLIC


@pytest.fixture(scope="module")
def two(home):
    """An adapter with two versions that differ in seed and metric."""
    contract = home.registry.versions.get("mood:1").contract
    home.publish("pair", contract, seed=51)
    home.publish("pair", contract, seed=52)
    home.registry.tags.set("pair", {"team": "search"})
    return "/v1/adapters/pair"


@pytest.fixture(scope="module")
def may(home):
    _, secret = home.registry.keys.create("curator", [Scope.PROMOTE, Scope.PUBLISH])
    return {"authorization": f"Bearer {secret}"}


def names(client, **query):
    return [one["name"] for one in client.get("/v1/adapters", params={"limit": 1000, **query}).json()["data"]]


def test_the_list_is_paged_by_a_cursor_without_loss_or_repeat(client):
    everything, cursor, seen = names(client), None, []
    while True:
        page = client.get("/v1/adapters", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [one["name"] for one in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == everything == sorted(everything)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"search": "PAI"}, ["pair"]),
        ({"tag": "team=search"}, ["pair"]),
        ({"output_head": "regress"}, ["stars"]),
        ({"metric": "accuracy>=0.51", "search": "pair"}, ["pair"]),
        ({"metric": ["accuracy>=0.01", "accuracy<=0.02"]}, ["talker", "writer"]),
        ({"method": "prefix"}, []),
        ({"state": "yanked", "search": "pair"}, []),
        ({"backbone": "tiny", "search": "pair"}, ["pair"]),
        ({"backbone": "other"}, []),
        ({"alias": "canary"}, []),
    ],
)
def test_the_list_is_searched_and_filtered(client, two, query, expected):
    assert sorted(names(client, **query)) == expected


@pytest.mark.parametrize(
    ("path", "given", "meant"),
    [
        ("/v1/adapters", "output_hed", "did you mean output_head? "),
        ("/v1/adapters", "metod", "did you mean method? "),
        ("/v1/adapters", "head", "did you mean output_head? "),
        ("/v1/adapters", "zzz", ""),
        ("/v1/adapters/pair/versions", "stat", "did you mean state? "),
        ("/v1/experiments", "stats", "did you mean status? "),
    ],
)
def test_an_unknown_parameter_is_refused_by_its_name_and_told_what_there_is(client, two, path, given, meant):
    answer = client.get(path, params={given: "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_parameter", given)
    assert f"Fix: {meant}there are " in error["message"]
    assert error["message"].endswith("limit, cursor")


def test_every_route_but_the_probes_and_openais_refuses_a_parameter_that_nobody_knows(client, may):
    routes = [one for one in client.app.routes if isinstance(one, APIRoute) and one.path not in (*PUBLIC, *OPENAI)]
    assert len(routes) > 25
    for route in routes:
        for method in route.methods:
            answer = client.request(method, f"{route.path}?zzz=1", headers=may, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), route.path


def test_openais_routes_pass_over_what_its_sdks_add(client):
    assert client.get("/v1/models?api-version=2024-10-21").status_code == 200
    assert client.get("/v1/models/mood?api-version=2024-10-21").status_code == 200
    body = {"model": "writer", "prompt": "a", "max_tokens": 1}
    assert client.post("/v1/completions?api-version=2024-10-21", json=body).status_code == 200


def test_the_page_on_http_names_every_parameter_of_the_list(client):
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    told = page.partition("`GET /v1/adapters` takes ")[2].partition("Any other parameter")[0]
    (route,) = (one for one in client.app.routes if one.path == "/v1/adapters" and "GET" in one.methods)
    assert {name for name in parameters(route) if f"`{name}`" not in told} == set()


def test_an_unknown_method_is_refused(client):
    error = client.get("/v1/adapters?method=lorra").json()["error"]
    assert (error["code"], error["param"]) == ("unknown_method", "method")
    assert "did you mean lora?" in error["message"]


def test_the_list_is_sorted_by_a_metric(client, two):
    found = names(client, sort="metric:accuracy", metric="accuracy<=0.03")
    assert found == ["writer", "talker", "rhymer"]
    assert names(client, sort="metric:accuracy", metric="accuracy<=0.03", descending=True) == found[::-1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"tag": "team"}, "invalid_tag"),
        ({"metric": "accuracy"}, "invalid_metric_range"),
        ({"sort": "colour"}, "invalid_sort"),
        ({"cursor": "abc"}, "invalid_cursor"),
        ({"limit": 0}, "invalid_value"),
        ({"limit": 1001}, "invalid_value"),
        ({"output_head": "paint"}, "invalid_value"),
    ],
)
def test_a_wrong_query_is_a_400(client, query, code):
    answer = client.get("/v1/adapters", params=query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_an_adapter_shows_its_champion(client, two):
    shown = client.get(two).json()
    assert (shown["aliases"], shown["last_number"], shown["shown"]["number"]) == ({"champion": 1}, 2, 1)
    assert shown["tags"] == {"team": "search"}


def test_versions_are_newest_first(client, two):
    assert [one["number"] for one in client.get(f"{two}/versions").json()["data"]] == [2, 1]


def test_a_version_shows_everything_by_number_alias_or_digest(client, two, home):
    digest = home.registry.versions.get("pair:1").digest
    by_number, by_alias, by_digest = (client.get(f"{two}/versions/{which}").json() for which in (1, "champion", digest))
    assert by_number == by_alias == by_digest
    assert by_number["contract"]["labels"] == ["bad", "good", "so-so"]
    assert {file["path"] for file in by_number["files"]} >= {"umbel.json", "adapter_model.safetensors"}
    assert str(home.settings.home) not in str(by_number)


def test_a_diff_names_what_differs_and_nothing_else(client, two):
    found = client.get(f"{two}/diff", params={"before": 1, "after": 2}).json()
    assert (found["before"], found["after"], found["same_answers"]) == ("pair:1", "pair:2", False)
    assert found["metrics"] == [{"key": "accuracy", "before": 0.51, "after": 0.52}]
    assert found["contract"] == []
    assert {change["key"] for change in found["data"]} == {"seed"}


def test_a_diff_tells_the_weights_layer_by_layer_where_asked(client, two, home):
    asked = {"before": 1, "after": 2, "weights": True}
    found = client.get(f"{two}/diff", params=asked).json()["weights"]
    places = [place for place, _ in found["layers"]]
    assert places == [*(str(i) for i in range(home.backbone.shape.layers)), "output head"]
    assert all(change > 0.1 for _, change in found["layers"])
    same = client.get(f"{two}/diff", params={**asked, "after": 1}).json()["weights"]
    assert {change for _, change in same["layers"]} == {0.0}
    assert client.get(f"{two}/diff", params={"before": 1, "after": 2}).json()["weights"] is None


def test_promote_and_rollback_move_the_bare_name_and_are_remembered(client, two, may):
    ask = {"model": "pair", "input": "hello"}
    assert client.post("/v1/classify", json=ask).json()["model"] == "pair:1"
    moved = client.post(f"{two}/promote", json={"version": 2, "expect": 1, "reason": "better"}, headers=may).json()
    assert (moved["origin"], moved["target"], moved["reason"]) == (1, 2, "better")
    assert client.post("/v1/classify", json=ask).json()["model"] == "pair:2"
    client.post(f"{two}/rollback", json={}, headers=may)
    assert client.post("/v1/classify", json=ask).json()["model"] == "pair:1"
    kinds = [event["kind"] for event in client.get(f"{two}/history", params={"alias": "champion"}).json()["data"]]
    assert kinds == ["set", "set", "rollback"]


def test_a_stale_expectation_is_a_409_that_no_sdk_repeats(client, two, may):
    answer = client.post(f"{two}/promote", json={"version": 2, "expect": 2}, headers=may)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "alias_moved")
    assert answer.headers["x-should-retry"] == "false"


def test_a_rollback_of_nothing_tells_each_way_out_in_one_pair_of_brackets(client, may):
    message = client.post("/v1/adapters/stars/rollback", headers=may).json()["error"]["message"]
    assert message.endswith(
        'Fix: name the version: POST /v1/adapters/stars/promote {"version": NUMBER} (umbel promote stars:NUMBER); '
        "GET /v1/adapters/stars/versions (umbel adapters show stars) lists them"
    )


def test_a_rollback_and_the_removal_of_an_alias_need_no_body(client, two, may):
    client.post(f"{two}/promote", json={"version": 2}, headers=may)
    back = client.post(f"{two}/rollback", headers=may)
    assert (back.status_code, back.json()["target"]) == (200, 1)
    client.put(f"{two}/aliases/canary", json={"version": 2}, headers=may)
    gone = client.delete(f"{two}/aliases/canary", headers=may)
    assert (gone.status_code, gone.json().get("target")) == (200, None)
    assert client.get(f"{two}/aliases").json() == {"champion": 1}


def test_an_alias_is_made_used_and_removed(client, two, may):
    client.put(f"{two}/aliases/canary", json={"version": 2, "expect": 0}, headers=may)
    assert client.get(f"{two}/aliases").json() == {"canary": 2, "champion": 1}
    assert client.post("/v1/classify", json={"model": "pair@canary", "input": "x"}).json()["model"] == "pair:2"
    client.request("DELETE", f"{two}/aliases/canary", json={}, headers=may)
    assert client.get(f"{two}/aliases").json() == {"champion": 1}


def test_a_version_is_yanked_and_brought_back(client, two, may):
    path = f"{two}/versions/2"
    assert client.post(f"{path}/yank", json={"reason": "wrong"}, headers=may).json()["state"] == "yanked"
    assert client.post("/v1/classify", json={"model": "pair:2", "input": "x"}).status_code == 503
    assert client.post(f"{path}/unyank", headers=may).json()["state"] == "ready"
    assert client.post("/v1/classify", json={"model": "pair:2", "input": "x"}).status_code == 200


def test_unknown_fields_of_a_write_are_refused(client, two, may):
    answer = client.post(f"{two}/promote", json={"version": 2, "force": True}, headers=may)
    assert answer.json()["error"]["param"] == "force"


@pytest.mark.parametrize(
    "path",
    ["/v1/adapters/none", "/v1/adapters/none/versions", "/v1/adapters/none/aliases", "/v1/adapters/pair/versions/9"],
)
def test_what_is_not_there_is_a_404(client, two, path):
    assert client.get(path).status_code == 404


def test_models_are_the_backbone_and_whoever_can_answer(client, home):
    home.publish("retired", home.registry.versions.get("mood:1").contract, seed=53)
    home.registry.versions.yank("retired:1", reason="old")
    found = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert found["tiny"]["parent"] is None
    assert found["mood"] | {"root": "mood:1", "parent": "tiny", "output_head": "classify"} == found["mood"]
    assert "retired" not in found


def test_a_deprecated_version_says_so_in_every_answer_from_the_next_request_on(client, two, home, may):
    """By the registry, as ``umbel adapters deprecate`` does beside a running server."""
    ask = {"model": "pair:1", "input": "x"}
    before = client.post("/v1/classify", json=ask)
    assert "deprecation" not in before.headers
    assert client.get("/v1/models/pair:1").json()["state"] == "ready"
    since = home.registry.versions.deprecate("pair:1", reason="pair:2 is better") and now_ms()
    answer = client.post("/v1/classify", json=ask)
    assert answer.json()["data"] == before.json()["data"]
    assert abs(int(answer.headers["deprecation"].removeprefix("@")) - since // 1000) <= 2
    assert answer.headers["link"].startswith('</v1/adapters/pair/versions/1>; rel="deprecation"')
    told = client.get("/v1/adapters/pair/versions/1").json()
    assert (told["state"], told["reason"]) == ("deprecated", "pair:2 is better")
    found = client.get("/v1/models/pair:1").json()
    assert (found["state"], found["reason"]) == ("deprecated", "pair:2 is better")
    both = client.post("/v1/classify", json={"model": ["pair:2", "pair:1"], "input": "x"})
    assert both.headers["deprecation"] == answer.headers["deprecation"]
    assert "versions/2" not in both.headers["link"]
    assert "deprecation" not in client.post("/v1/classify", json={"model": "pair:2", "input": "x"}).headers
