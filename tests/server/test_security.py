import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from umbel.core.errors import UsageError
from umbel.registry.records import Scope
from umbel.server.app import create_app
from umbel.server.assembly import make_service
from umbel.server.security import PUBLIC, check_binding, require_scopes, scopes
from umbel.server.service import ServerConfig

GENERATE = {"model": "tiny", "prompt": "hello", "max_tokens": 1}
WRITES = ("PUT", "POST", "DELETE", "PATCH")


@pytest.fixture(scope="module")
def keys(home):
    return {scope: home.registry.keys.create(f"k-{scope}", [scope])[1] for scope in Scope}


def app_client(serving, home, **config):
    config = ServerConfig(**config)
    service = make_service(home.backbone, home.registry, serving.thread, serving.service.capacity, config)
    return TestClient(create_app(service), base_url="http://localhost")


@pytest.fixture(scope="module")
def guarded(serving, home):
    return app_client(serving, home, require_keys=True)


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def test_every_route_has_a_scope_or_is_on_the_short_public_list(client):
    found = dict(scopes(client.app))
    assert {path for path, scope in found.items() if scope is None} == set(PUBLIC)
    assert len(PUBLIC) <= 4


def test_a_route_without_a_scope_keeps_the_app_from_starting(serving):
    app = create_app(serving.service)
    app.add_api_route("/open", lambda: None)
    with pytest.raises(AssertionError, match="/open"):
        require_scopes(app)


def test_no_route_that_writes_is_readable_by_a_reading_key(client):
    """POST routes that only answer are the exception, and they are these."""
    asking = {Scope.INFER}
    for route in client.app.routes:
        if isinstance(route, APIRoute) and route.methods & set(WRITES):
            scope = dict(scopes(client.app))[route.path]
            assert scope in asking | {Scope.PROMOTE, Scope.PUBLISH}, route.path


def test_beyond_loopback_every_route_but_the_public_ones_needs_a_key(serving, home):
    open_world = app_client(serving, home, host="0.0.0.0")
    for route in open_world.app.routes:
        if route.path in PUBLIC:
            continue
        path = route.path.replace("{model:path}", "x").replace("{name}", "x").replace("{which}", "1")
        answer = open_world.request(next(iter(route.methods)), path.replace("{alias}", "y"))
        assert answer.status_code == 401, route.path
        assert answer.json()["error"]["code"] == "missing_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", PUBLIC)
def test_public_routes_answer_without_a_key(guarded, path):
    assert guarded.get(path).status_code == 200


def test_a_key_opens_what_its_scope_names_and_nothing_else(guarded, keys):
    assert guarded.post("/v1/completions", json=GENERATE, headers=bearer(keys[Scope.INFER])).status_code == 200
    answer = guarded.get("/v1/adapters", headers=bearer(keys[Scope.INFER]))
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "insufficient_scope"
    assert guarded.get("/v1/adapters", headers=bearer(keys[Scope.READ])).status_code == 200


def test_admin_includes_every_scope(guarded, keys):
    assert guarded.post("/v1/completions", json=GENERATE, headers=bearer(keys[Scope.ADMIN])).status_code == 200
    assert guarded.get("/v1/adapters", headers=bearer(keys[Scope.ADMIN])).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "umbel_x"])
def test_no_key_is_a_401_that_tells_how_to_get_one(guarded, header):
    answer = guarded.post("/v1/completions", json=GENERATE, headers={"authorization": header})
    assert answer.status_code == 401
    assert "umbel keys create" in answer.json()["error"]["message"]


@pytest.mark.parametrize("secret", ["umbel_00000000_wrong", "nonsense", "umbel__"])
def test_a_wrong_key_is_a_401_and_is_not_repeated(guarded, secret):
    answer = guarded.post("/v1/completions", json=GENERATE, headers=bearer(secret))
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert secret not in answer.text


def test_a_revoked_key_opens_nothing(guarded, home):
    key, secret = home.registry.keys.create("shortlived", ["infer"])
    home.registry.keys.revoke(key.id)
    assert guarded.post("/v1/completions", json=GENERATE, headers=bearer(secret)).status_code == 401


def test_on_loopback_asking_is_free_and_changing_is_not(client, keys):
    assert client.post("/v1/completions", json=GENERATE).status_code == 200
    body = {"version": 1}
    assert client.post("/v1/adapters/mood/promote", json=body).status_code == 401
    assert client.post("/v1/adapters/mood/promote", json=body, headers=bearer(keys[Scope.READ])).status_code == 403
    assert client.post("/v1/adapters/mood/promote", json=body, headers=bearer(keys[Scope.PROMOTE])).status_code == 200


def test_who_promoted_is_written_down(client, home, keys):
    contract = home.registry.versions.get("mood:1").contract
    home.publish("audited", contract, seed=31)
    home.publish("audited", contract, seed=32)
    client.post("/v1/adapters/audited/promote", json={"version": 2}, headers=bearer(keys[Scope.PROMOTE]))
    assert home.registry.aliases.history("audited")[-1].actor == "key:k-promote"


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", ""])
def test_on_loopback_another_host_name_is_refused(client, host):
    answer = client.get("/health", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1234", "[::1]:80"])
def test_loopbacks_own_names_are_answered(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_host_may_be_allowed_by_name(serving, home):
    client = app_client(serving, home, allowed_hosts=("box.lan",))
    assert client.get("/health", headers={"host": "box.lan"}).status_code == 200


def test_a_page_of_another_origin_may_not_write(client):
    answer = client.post("/v1/completions", json=GENERATE, headers={"origin": "https://evil.example"})
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    same = client.post("/v1/completions", json=GENERATE, headers={"origin": "http://localhost"})
    assert same.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413_before_it_is_read(serving, home, chunked):
    client = app_client(serving, home, max_body_bytes=1000)
    body = b"x" * 1001
    content = iter([body[:500], body[500:]]) if chunked else body
    answer = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "1000" in answer.json()["error"]["message"]


def test_a_body_at_the_limit_is_read(serving, home):
    client = app_client(serving, home, max_body_bytes=1000)
    body = b'{"model": "tiny", "prompt": "hello", "max_tokens": 1}'.ljust(1000)
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200


class NoKeys:
    def list(self):
        return ()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_binding_beyond_loopback_without_a_key_is_refused(host):
    with pytest.raises(UsageError, match="no API key"):
        check_binding(host, NoKeys())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_binding_to_loopback_needs_none(host):
    check_binding(host, NoKeys())


def test_revoked_keys_do_not_count_for_binding(home):
    ring = home.registry.keys
    gone = [ring.revoke(ring.create("once", ["infer"])[0].id)]

    class OnlyRevoked:
        def list(self):
            return tuple(gone)

    with pytest.raises(UsageError):
        check_binding("0.0.0.0", OnlyRevoked())


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "a%5cb", "%252e%252e%252f"])
def test_tricks_with_paths_reach_nothing(client, name):
    for path in (f"/v1/adapters/{name}", f"/v1/models/{name}", f"/v1/adapters/mood/versions/{name}"):
        answer = client.get(path)
        assert 400 <= answer.status_code < 500, path
        assert answer.json()["error"]["code"]


def test_two_keys_never_share_what_was_kept_of_a_prompt(guarded, home):
    """Nor do two keys of one name: a revoked one's name can be given again."""
    one, other = (bearer(home.registry.keys.create("twins", [Scope.INFER])[1]) for _ in range(2))
    body = {"model": "tiny", "prompt": list(range(50, 90)), "max_tokens": 1}
    answers = [guarded.post("/v1/completions", json=body, headers=who).json() for who in (one, other, one, other)]
    kept = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert kept == [0, 0, 32, 32]
