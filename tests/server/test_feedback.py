"""``/v1/feedback``: whose outcome it is, and that it counts once."""

import pytest


def ask(client, name, unit):
    body = {"model": name, "prompt": "hello", "max_tokens": 1}
    return client.post("/v1/completions", json=body, headers={"x-experiment-unit": unit})


def thumbs(book, name):
    return next(one for one in book.report(name).effects if one.metric == "thumbs")


def test_feedback_on_a_request_counts_once(client, book, begin):
    name = begin()
    request_id = ask(client, name, "ada").headers["x-request-id"]
    body = {"request_id": request_id, "metric": "thumbs", "value": True}
    assert client.post("/v1/feedback", json=body).json() == {"counted": True}
    assert client.post("/v1/feedback", json=body).json() == {"counted": False}
    changed = client.post("/v1/feedback", json=body | {"value": 0})
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "idempotency_mismatch")
    assert changed.headers["x-should-retry"] == "false"
    message = changed.json()["error"]["message"]
    assert message.startswith(f"request {request_id} has the thumbs 1 already; each metric of a request counts once.")
    assert "Fix: send it with an idempotency_key of its own" in message
    assert client.post("/v1/feedback", json=body | {"value": 0, "idempotency_key": "beside"}).json()["counted"]
    found = thumbs(book, name)
    assert found.n + found.n_control == 1


def test_feedback_on_a_unit_needs_a_key_and_takes_it_from_body_or_header(client, book, begin):
    name = begin()
    ask(client, name, "zoë".encode())
    body = {"experiment": name, "unit": "zoë", "metric": "thumbs", "value": 0.5}
    refused = client.post("/v1/feedback", json=body)
    assert refused.json()["error"]["param"] == "idempotency_key"
    assert client.post("/v1/feedback", json=body | {"idempotency_key": "1"}).json()["counted"]
    assert not client.post("/v1/feedback", json=body, headers={"idempotency-key": "1"}).json()["counted"]
    assert client.post("/v1/feedback", json=body, headers={"idempotency-key": "2"}).json()["counted"]


def test_late_feedback_counts(client, book, begin):
    name = begin()
    request_id = ask(client, name, "ada").headers["x-request-id"]
    book.stop(name)
    body = {"request_id": request_id, "metric": "thumbs", "value": 1}
    assert client.post("/v1/feedback", json=body).json() == {"counted": True}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"request_id": "req-unknown"}, 404, "exposure_not_found"),
        ({"experiment": "NAME", "unit": "nobody", "idempotency_key": "k"}, 404, "exposure_not_found"),
        ({"experiment": "nope", "unit": "ada", "idempotency_key": "k"}, 404, "experiment_not_found"),
        ({"experiment": "NAME", "unit": "ada", "idempotency_key": "k", "metric": "stars"}, 400, "unknown_metric"),
        ({"experiment": "NAME", "unit": "ada", "idempotency_key": "k", "metric": "error_rate"}, 400, "reserved_metric"),
        ({"experiment": "NAME", "unit": "ada", "idempotency_key": "k", "value": "good"}, 400, "invalid_value"),
        ({"experiment": "NAME", "unit": "ada", "idempotency_key": "k", "value": None}, 400, "invalid_value"),
        ({"experiment": "NAME", "unit": "ada", "idempotency_key": "k", "value": 1e300}, 400, "invalid_value"),
        ({"unit": "ada", "idempotency_key": "k"}, 400, "invalid_feedback"),
        ({"request_id": "r", "experiment": "NAME", "unit": "ada"}, 400, "invalid_feedback"),
        ({}, 400, "invalid_feedback"),
        ({"request_id": "r", "rating": 5}, 400, "unknown_field"),
        ({"experiment": "NAME", "unit": " ", "idempotency_key": "k"}, 400, "invalid_value"),
    ],
)
def test_feedback_that_belongs_nowhere_is_refused(client, begin, body, status, code):
    name = begin()
    ask(client, name, "ada")
    body = {"metric": "thumbs", "value": 1} | {key: name if value == "NAME" else value for key, value in body.items()}
    answer = client.post("/v1/feedback", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_not_a_number_is_no_feedback(client):
    content = b'{"request_id": "r", "metric": "thumbs", "value": NaN}'
    answer = client.post("/v1/feedback", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
