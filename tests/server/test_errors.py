import pytest
from starlette.testclient import TestClient

from umbel.core.errors import Conflict, Overloaded, UmbelError, Unavailable
from umbel.server.app import create_app
from umbel.server.errors import error_body, error_headers

GENERATE = {"model": "tiny", "prompt": "hello", "max_tokens": 2}


def error_of(answer, status, code, param=None):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def post(client, **changes):
    return client.post("/v1/completions", json={**GENERATE, **changes})


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("nope", "adapter_not_found"),
        ("writer:99", "version_not_found"),
        ("writer@canary", "alias_not_found"),
        (f"writer@sha256:{'0' * 64}", "version_not_found"),
    ],
)
def test_an_unknown_model_is_a_404_that_names_it(client, model, code):
    error = error_of(post(client, model=model), 404, code, "model")
    assert model.partition("@")[0].partition(":")[0] in error["message"]
    assert "Fix:" in error["message"]


def test_the_fix_is_told_as_a_request_and_as_a_command_after_it(client):
    message = post(client, model="nope").json()["error"]["message"]
    assert message.endswith("GET /v1/adapters (umbel adapters list) shows every adapter")


@pytest.mark.parametrize("model", ["Writer!", "writer:0", "writer@1", "a:b:c", "../etc/passwd"])
def test_a_word_that_can_name_nothing_is_a_400(client, model):
    assert post(client, model=model).status_code == 400


def test_a_yanked_version_is_refused_with_its_reason_and_never_answered_by_another(client, home):
    home.publish("gone", home.registry.versions.get("rhymer:1").contract, seed=21)
    home.registry.versions.yank("gone:1", reason="wrong labels")
    answer = post(client, model="gone")
    error = error_of(answer, 503, "version_yanked", "model")
    assert "wrong labels" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "x-umbel-adapter" not in answer.headers


def test_a_version_whose_bytes_are_broken_is_refused_by_name(client, home):
    version = home.publish("broken", home.registry.versions.get("rhymer:1").contract, seed=22)
    weights = next(file for file in version.files if file.path.endswith(".safetensors"))
    blob = home.registry.store.path(weights.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * weights.bytes)
    answer = post(client, model="broken")
    error = error_of(answer, 503, "artifact_corrupt")
    assert "broken:1" in error["message"]
    assert str(home.settings.home) not in answer.text
    home.registry.versions.reject("broken:1", reason="its bytes were broken by a test")


def test_an_adapter_of_another_backbone_is_refused_with_both_fingerprints(client, home):
    other = "sha256:" + "5" * 64
    version = home.registry.versions.get("rhymer:1")
    stored = home.registry.fetch(version.digest)
    files = {file.path: stored.folder / file.path for file in version.files}
    home.registry.publish(
        files, name="stranger", method="lora", config=version.config, contract=version.contract, backbone=other
    )
    error = error_of(post(client, model="stranger"), 409, "backbone_mismatch", "model")
    assert other in error["message"]
    assert f"this server has {home.backbone.name} ({home.backbone.fingerprint})" in error["message"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"zap": 1}, "unknown_field", "zap"),
        ({"max_token": 1}, "unknown_field", "max_token"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": "many"}, "invalid_value", "max_tokens"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"min_tokens": 9}, "invalid_value", "min_tokens"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options"),
        ({"prompt": []}, "invalid_prompt", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_prompt", "prompt"),
        ({"prompt": [[]]}, "invalid_prompt", "prompt"),
        ({"prompt": {"text": "a"}}, "invalid_prompt", "prompt"),
        ({"prompt": [True]}, "invalid_prompt", "prompt"),
        ({"prompt": ""}, "empty_input", "prompt"),
        ({"prompt": ["ok", ""]}, "empty_input", "prompt.1"),
        ({"prompt": [99999]}, "invalid_token", "prompt"),
        ({"stop_token_ids": [99999]}, "invalid_value", "stop_token_ids"),
        ({"prompt": "x" * 513}, "context_length_exceeded", "prompt"),
        ({"max_tokens": 510}, "context_length_exceeded", "prompt"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, changes, code, param):
    error_of(post(client, **changes), 400, code, param)


@pytest.mark.parametrize(
    ("path", "body", "param", "told"),
    [
        ("/v1/classify", {"model": "mood", "input": 5}, "input", "valid string or a valid list."),
        ("/v1/classify", {"model": "mood", "input": ["ok", 5]}, "input", "valid string"),
        ("/v1/feedback", {"request_id": "r", "metric": "thumbs", "value": "good"}, "value", " or "),
    ],
)
def test_a_field_that_takes_several_kinds_is_named_once_with_all_that_it_takes(client, path, body, param, told):
    error = error_of(client.post(path, json=body), 400, "invalid_value", param)  # without the union's members
    assert told in error["message"]
    assert error["message"].count("Input should be ") == 1
    assert "Fix: /openapi.json tells what every field takes" in error["message"]


def test_a_misspelt_field_is_answered_with_the_right_one(client):
    assert "did you mean max_tokens?" in post(client, max_token=1).json()["error"]["message"]


def test_a_misspelt_field_is_told_before_the_one_that_it_leaves_missing(client):
    error = client.post("/v1/classify", json={"model": "mood", "inptu": "x"}).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", "inptu")
    assert "did you mean input?" in error["message"]
    missing = client.post("/v1/classify", json={"model": "mood"}).json()["error"]
    assert (missing["code"], "Fix: add input" in missing["message"]) == ("missing_field", True)


def test_another_word_for_the_field_that_is_missing_is_answered_with_it(client):
    error = client.post("/v1/classify", json={"model": "mood", "text": "x"}).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", "text")
    assert "did you mean input?" in error["message"]
    further = client.post("/v1/classify", json={"model": "mood", "input": "x", "text": "x"}).json()["error"]
    assert "remove it" in further["message"]


def test_a_prompt_that_is_too_long_is_told_with_both_numbers_and_never_cut(client):
    message = post(client, prompt="x" * 600).json()["error"]["message"]
    assert "600" in message
    assert "512" in message


def test_a_generating_adapters_own_length_counts_too(client, home):
    contract = home.registry.versions.get("rhymer:1").contract.model_copy(update={"max_length": 4})
    home.publish("terse", contract, seed=23)
    error = error_of(post(client, model="terse", prompt="hello"), 400, "context_length_exceeded", "prompt")
    assert "5 tokens" in error["message"]


def test_a_missing_field_is_named(client):
    error_of(client.post("/v1/completions", json={"model": "tiny"}), 400, "missing_field", "prompt")


@pytest.mark.parametrize("body", [b"{", b"", b"[1", b"\xff\xfe", b'{"model": "tiny",}'])
def test_a_body_that_is_no_json_is_a_400(client, body):
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client, number):
    body = f'{{"model": "tiny", "prompt": "a", "temperature": {number}}}'
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    error_of(answer, 400, "invalid_value", "temperature")


def test_json_as_deep_as_a_well_is_a_400(client):
    body = b'{"model": "tiny", "prompt": ' + b"[" * 100_000
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_body_without_its_content_type_is_told_how(client):
    answer = client.post("/v1/completions", content=b'{"model": "tiny"}')
    assert "Content-Type: application/json" in error_of(answer, 400, "invalid_json")["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "route_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/responses", 404, "not_served"),
        ("GET", "/docs", 404, "route_not_found"),
    ],
)
def test_what_the_router_refuses_has_the_same_form(client, method, path, status, code):
    error_of(client.request(method, path), status, code)


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("POST", "/v1/classfy", "did you mean /v1/classify?"),
        ("POST", "/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("POST", "/embeddings", "did you mean /v1/embeddings?"),
        ("GET", "/v1/classify", "send POST"),
    ],
)
def test_a_route_that_is_nearly_right_is_answered_with_the_right_one(client, method, path, told):
    assert told in client.request(method, path).json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
def test_a_route_that_is_like_none_is_answered_with_no_other(client, path):
    assert "did you mean" not in client.get(path).json()["error"]["message"]


def test_an_empty_list_is_told_as_empty(client):
    answer = client.post("/v1/classify", json={"model": "mood", "input": []})
    assert "input is empty. Fix: send at least one" in error_of(answer, 400, "invalid_value", "input")["message"]


def test_a_body_that_is_no_json_is_told_where(client):
    body = b'{"model": "tiny", "prompt": "a"'
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert "Expecting ',' delimiter (character 31)" in error_of(answer, 400, "invalid_json")["message"]


def test_a_name_in_capitals_is_answered_with_the_small_one(client):
    assert "did you mean writer?" in error_of(post(client, model="Writer"), 400, "invalid_name", "model")["message"]


def test_every_reply_has_a_request_id_and_keeps_a_plain_one_of_the_caller(client):
    assert client.get("/health").headers["x-request-id"].startswith("req-")
    assert client.get("/nope").headers["x-request-id"].startswith("req-")
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/health", headers={"x-request-id": "a b\t"}).headers["x-request-id"] != "a b"


def test_a_fault_of_ours_tells_the_client_nothing_of_itself(serving, monkeypatch, caplog):
    async def fault(*_, **__):
        raise RuntimeError("secret /root/path")

    monkeypatch.setattr(serving.service.targets, "find", fault)
    client = TestClient(create_app(serving.service), base_url="http://localhost")
    answer = post(client)
    error_of(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "secret /root/path" in caplog.text


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (Overloaded("full", retry_after=1.2), {"retry-after": "2", "retry-after-ms": "1200"}),
        (Unavailable("gone"), {"x-should-retry": "false"}),
        (Conflict("moved"), {"x-should-retry": "false"}),
        (UmbelError("fault"), {}),
    ],
)
def test_headers_tell_whether_and_when_to_try_again(error, headers):
    assert error_headers(error) == headers


def test_messages_of_a_driver_stay_inside():
    error = Unavailable("could not connect to db.internal:5432", code="database_unavailable", hint="wait")
    assert "db.internal" not in error_body(error)["error"]["message"]


def test_a_database_that_is_down_leaves_what_is_known_answering(client, serving, monkeypatch):
    assert post(client, model="rhymer").status_code == 200

    def down(_):
        raise Unavailable("no route to db.internal", code="database_unavailable", retry_after=1.0)

    monkeypatch.setattr(serving.service.registry.versions, "standing", down)
    assert post(client, model="rhymer").headers["x-umbel-adapter"] == "rhymer:1"
    error_of(post(client, model="never-asked"), 503, "database_unavailable", "model")


def test_a_full_queue_is_a_503_that_says_when_to_come_back(client, serving, monkeypatch):
    def full(_):
        raise Overloaded("1024 requests wait already", code="queue_full", retry_after=3.0)

    monkeypatch.setattr(serving.service.engine, "submit", full)
    answer = post(client)
    error_of(answer, 503, "queue_full")
    assert answer.headers["retry-after"] == "3"


def test_of_several_prompts_none_is_left_behind_when_the_queue_is_full(client, serving, monkeypatch):
    submit, made = serving.service.engine.submit, []

    def full_after_two(request):
        if len(made) == 2:
            raise Overloaded("full", code="queue_full", retry_after=1.0)
        made.append(submit(request))
        return made[-1]

    monkeypatch.setattr(serving.service.engine, "submit", full_after_two)
    assert post(client, prompt=["a", "b", "c"], max_tokens=400, ignore_eos=True).status_code == 503
    assert [handle.result().finished.reason for handle in made] == ["cancelled", "cancelled"]


def test_a_request_past_its_time_fails_and_says_so(client, serving, monkeypatch):
    object.__setattr__(serving.service.config, "request_seconds", -1.0)
    try:
        error_of(post(client), 503, "deadline_exceeded")
    finally:
        object.__setattr__(serving.service.config, "request_seconds", 600.0)


def test_a_failure_before_the_first_token_of_a_stream_is_an_http_status(client):
    assert post(client, stream=True, model="nope").status_code == 404
    assert post(client, stream=True, max_tokens=600).status_code == 400


def test_a_failure_midway_is_an_error_object_and_the_end(client, serving, monkeypatch):
    submit = serving.service.engine.submit

    def failing(request):
        handle = submit(request)
        put = handle.put

        def breaking(event):
            if getattr(event, "error", 0) is None:
                event = type(event)(
                    "error", event.usage, event.timing, UmbelError("not finite", code="non_finite_output")
                )
            put(event)

        handle.put = breaking
        return handle

    monkeypatch.setattr(serving.service.engine, "submit", failing)
    lines = [line for line in post(client, stream=True, max_tokens=4).text.split("\n\n") if line]
    assert '"code": "non_finite_output"' in lines[-1]
    assert "data: [DONE]" not in lines
