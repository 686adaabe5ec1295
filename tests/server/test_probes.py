import pytest

from umbel.core.errors import Unavailable
from umbel.server.metrics import MAX_ADAPTERS, OTHER, Metrics


def samples(client):
    lines = client.get("/metrics").text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))


def test_metrics_count_requests_and_tokens(client):
    success = 'umbel_request_success_total{adapter="stars",reason="stop",version="1"}'
    prompt = 'umbel_prompt_tokens_total{adapter="stars"}'
    before = samples(client)
    client.post("/v1/score", json={"model": "stars", "input": ["hello", "hello"]})
    after = samples(client)
    assert float(after[success]) == float(before.get(success, 0)) + 2
    assert float(after[prompt]) == float(before.get(prompt, 0)) + 10
    assert float(after["umbel_kv_bytes"]) == 16_000_000
    assert float(after["umbel_steps_total"]) > float(before["umbel_steps_total"])


def test_metrics_have_a_route_as_label_and_never_a_path(client):
    for number in range(3):
        client.get(f"/v1/adapters/nobody-{number}")
        client.get(f"/nowhere-{number}")
    text = client.get("/metrics").text
    assert 'route="/v1/adapters/{name}"' in text
    assert 'route="unknown"' in text
    assert "nobody-1" not in text
    assert "nowhere-1" not in text


def test_labels_of_adapters_are_bounded():
    metrics = Metrics()
    names = {metrics.name(f"a{number}") for number in range(MAX_ADAPTERS + 50)}
    assert len(names) == MAX_ADAPTERS + 1
    assert OTHER in names
    assert metrics.name("a0") == "a0"


def test_ready_tells_of_a_database_that_is_down_and_stays_ready(client, serving, monkeypatch):
    def down():
        raise Unavailable("no", code="database_unavailable")

    assert client.get("/ready").json() == {"ready": True, "reasons": []}
    monkeypatch.setattr(serving.service.registry.backbones, "list", down)
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": ["database_unavailable"]})


def test_status_names_what_is_resident(client, home):
    client.post("/v1/classify", json={"model": "mood", "input": "x"})
    found = client.get("/v1/status").json()
    digest = home.registry.versions.get("mood:1").digest
    assert {"adapter": "mood:1", "digest": digest} in found["resident"]
    assert (found["backbone"], found["max_rows"]) == ("tiny", 8)
    assert 0 < found["adapter_bytes_used"] <= found["adapter_bytes"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/status"])
def test_probes_change_nothing(client, serving, path):
    before = serving.thread.stats().steps
    assert client.get(path).status_code == 200
    assert serving.thread.stats().steps == before
