"""Versions that come in over HTTP: what is taken becomes a version like any other, what is refused leaves nothing."""

import asyncio
import json
import pickle
import threading

import pytest
import torch
from safetensors.torch import load, save
from starlette.testclient import TestClient

from umbel.core.manifest import CARD_FILE, CONFIG_FILE, METRICS_FILE, UMBEL_FILE, WEIGHTS_FILE, metrics_file
from umbel.registry.records import Scope
from umbel.server.app import create_app
from umbel.server.assembly import make_service
from umbel.server.importing import AT_ONCE
from umbel.server.service import ServerConfig
from umbel.server.uploads import FIELD_BYTES, MAX_PARTS, TEXT_BYTES


@pytest.fixture(scope="module")
def may(home):
    return {"authorization": f"Bearer {home.registry.keys.create('uploader', [Scope.PUBLISH])[1]}"}


@pytest.fixture(scope="module")
def own(home):
    """A folder as umbel writes it."""
    contract = home.registry.versions.get("mood:1").contract
    digest = home.publish("original", contract, seed=81).digest
    return {path.name: path.read_bytes() for path in home.registry.fetch(digest).folder.iterdir()}


@pytest.fixture(scope="module")
def peft(own):
    """The same as PEFT writes it: no word about labels, template or lengths."""
    return {name: content for name, content in own.items() if name != UMBEL_FILE}


@pytest.fixture
def traces(home):
    """Everything that a refused upload could leave behind."""

    def find():
        store = home.registry.store
        return (
            sorted(store.staging.iterdir()),
            sorted(store.digests()),
            [adapter.name for adapter in home.registry.adapters.list(limit=1000).items],
        )

    return find


def upload(client, headers, name, files, path="versions", **fields):
    parts = [("files", (file, content)) for file, content in files.items()]
    return client.post(f"/v1/adapters/{name}/{path}", files=parts, data=fields, headers=headers)


def refused(answer):
    assert "Traceback" not in answer.text
    return answer.status_code, answer.json()["error"]["code"]


def app_of(serving, home, **config):
    capacity = serving.service.capacity
    return create_app(make_service(home.backbone, home.registry, serving.thread, capacity, ServerConfig(**config)))


def test_a_folder_of_umbels_own_becomes_a_version_with_the_same_digest_and_answers(client, may, home, own):
    answer = upload(client, may, "uploaded", {**own, CARD_FILE: b"# Mood\n"})
    version = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/adapters/uploaded/versions/1"
    assert version["digest"] == home.registry.versions.get("original:1").digest
    assert (version["created_by"], version["card"], version["aliases"]) == ("key:uploader", "# Mood\n", ["champion"])
    mine, theirs = (
        client.post("/v1/classify", json={"model": name, "input": "hello"}) for name in ("uploaded", "original")
    )
    assert mine.json()["data"] == theirs.json()["data"]
    assert mine.headers["x-umbel-adapter"] == "uploaded:1"


def test_figures_that_an_export_brings_along_are_kept_where_they_are_of_these_bytes(client, may, home, own, tmp_path):
    digest = home.registry.versions.get("original:1").digest
    told = upload(client, may, "measured", {**own, METRICS_FILE: metrics_file(digest, {"accuracy": 0.75})})
    assert (told.status_code, told.json()["digest"], told.json()["metrics"]) == (201, digest, {"accuracy": 0.75})
    other = upload(client, may, "others", {**own, METRICS_FILE: metrics_file("sha256:" + "0" * 64, {"accuracy": 1.0})})
    assert (other.status_code, other.json()["metrics"]) == (201, {})
    broken = upload(client, may, "broken", {**own, METRICS_FILE: b"[]"})
    assert refused(broken) == (400, "invalid_metrics")
    home.registry.export("measured:1", tmp_path / "out")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = upload(client, may, "again", exported)
    assert (again.status_code, again.json()["metrics"]) == (201, {"accuracy": 0.75})


def test_the_same_bytes_again_are_the_same_version(client, may, own):
    first, second = (upload(client, may, "twice", own) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


def test_a_folder_of_pefts_is_completed_by_the_form(client, may, peft):
    words = {"template": "Text: {text}", "max_length": "20", "description": "feelings", "labels": "low, mid,high"}
    version = upload(client, may, "from-peft", peft, **words).json()
    contract = version["contract"]
    assert contract["labels"] == ["low", "mid", "high"]
    assert (contract["template"], contract["max_length"]) == ("Text: {text}", 20)
    assert client.get("/v1/adapters/from-peft").json()["description"] == "feelings"
    (row,) = client.post("/v1/classify", json={"model": "from-peft", "input": "x"}).json()["data"]
    assert row["labels"] == ["low", "mid", "high"]


def test_labels_sent_one_by_one_may_hold_commas(client, may, peft):
    version = upload(client, may, "commas", peft, labels=["yes, please", "no", "so-so"]).json()
    assert version["contract"]["labels"] == ["yes, please", "no", "so-so"]


@pytest.mark.parametrize("backbone", ["tiny", "fingerprint"])
def test_the_backbone_may_be_named_where_it_is_the_one_that_runs(client, may, own, home, backbone):
    backbone = home.backbone.fingerprint if backbone == "fingerprint" else backbone
    assert upload(client, may, f"named-{len(backbone)}", own, backbone=backbone).status_code == 201


def test_a_second_version_takes_no_traffic(client, may, home, own):
    first = home.publish("standing", home.registry.versions.get("mood:1").contract, seed=82)
    assert upload(client, may, "standing", own).json()["number"] == 2
    assert (
        client.post("/v1/classify", json={"model": "standing", "input": "x"}).headers["x-umbel-digest"] == first.digest
    )


def test_many_at_once_become_as_many_versions_or_are_told_to_come_back(client, may, peft):
    answers = []

    def send(number):
        labels = [f"{number}-{place}" for place in range(3)]
        answers.append(upload(client, may, "busy", peft, labels=labels))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    taken = [answer.json()["number"] for answer in answers if answer.status_code == 201]
    assert sorted(taken) == list(range(1, len(taken) + 1))
    assert {refused(answer) for answer in answers if answer.status_code != 201} <= {(503, "too_many_uploads")}
    assert len(taken) >= AT_ONCE


class Canary:
    """Unpickling it would raise an alarm."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


def with_weights(change):
    def changed(files):
        tensors = load(files[WEIGHTS_FILE])
        change(tensors)
        return {**files, WEIGHTS_FILE: save(tensors)}

    return changed


def with_json(name, **keys):
    return lambda files: {**files, name: json.dumps({**json.loads(files[name]), **keys}).encode()}


def with_file(name, content=b"x"):
    return lambda files: {**files, name: content}


def without(name):
    return lambda files: {key: content for key, content in files.items() if key != name}


def poison(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


def silence(tensors):
    for tensor in tensors.values():
        tensor.zero_()


def widen(tensors):
    key = next(iter(tensors))
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def stray(tensors):
    tensors["base_model.model.model.layers.0.mlp.secret.lora_A.weight"] = torch.ones(1, 1)


DEEP = b"[" * 100_000

REFUSED = [
    ("pickle", with_file("adapter_model.bin", pickle.dumps(Canary())), {}, "unsafe_file"),
    ("arguments", with_file("training_args.bin"), {}, "unsafe_file"),
    ("pickle as weights", with_file(WEIGHTS_FILE, pickle.dumps(Canary())), {}, "corrupt_safetensors"),
    ("parent", with_file("../adapter_config.json"), {}, "unsafe_path"),
    ("parents", with_file("a/../../umbel.json"), {}, "unsafe_path"),
    ("absolute", with_file("/etc/passwd"), {}, "unsafe_path"),
    ("backslash", with_file("..\\umbel.json"), {}, "unsafe_path"),
    ("hidden", with_file(".ssh"), {}, "unsafe_path"),
    ("nothing", with_file(" "), {}, "unsafe_path"),
    ("encoded", with_file("%2e%2e%2fumbel.json"), {}, "unsafe_path"),
    ("unicode", with_file("umbel\u2024json"), {}, "unsafe_path"),
    ("long", with_file("a" * 300), {}, "unsafe_path"),
    ("deeper", with_file("sub/adapter_config.json"), {}, "unexpected_file"),
    ("tokenizer", with_file("tokenizer.json", b"{}"), {}, "unexpected_file"),
    ("script", with_file("modeling.py"), {}, "unexpected_file"),
    ("missing labels", lambda files: files, {}, "missing_labels"),
    ("one label short", lambda files: files, {"labels": "a,b"}, "label_count_mismatch"),
    ("one label twice", lambda files: files, {"labels": "a,a,b"}, "duplicate_labels"),
    ("nan", with_weights(poison), {"labels": "a,b,c"}, "non_finite_weights"),
    ("no effect", with_weights(silence), {"labels": "a,b,c"}, "no_effect"),
    ("wrong shape", with_weights(widen), {"labels": "a,b,c"}, "shape_mismatch"),
    ("stray tensor", with_weights(stray), {"labels": "a,b,c"}, "unexpected_tensors"),
    (
        "cut",
        lambda files: {**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:-9]},
        {"labels": "a,b,c"},
        "corrupt_safetensors",
    ),
    ("empty", with_file(WEIGHTS_FILE, b""), {"labels": "a,b,c"}, "corrupt_safetensors"),
    ("no weights", without(WEIGHTS_FILE), {"labels": "a,b,c"}, "missing_file"),
    ("no config", without(CONFIG_FILE), {"labels": "a,b,c"}, "missing_file"),
    ("no json", with_file(CONFIG_FILE, b"{"), {"labels": "a,b,c"}, "invalid_adapter_config"),
    ("deep json", with_file(CONFIG_FILE, DEEP), {"labels": "a,b,c"}, "invalid_adapter_config"),
    ("deep umbel.json", with_file(UMBEL_FILE, DEEP), {}, "invalid_umbel_json"),
    ("odd list", with_json(CONFIG_FILE, modules_to_save=[{}]), {"labels": "a,b,c"}, "invalid_adapter_config"),
    ("unknown key", with_json(CONFIG_FILE, magic=3), {"labels": "a,b,c"}, "unsupported_config_key"),
    ("code", with_json(CONFIG_FILE, peft_type="X'; import os"), {"labels": "a,b,c"}, "unsupported_method"),
    ("other backbone", lambda files: files, {"labels": "a,b,c", "backbone": "llama"}, "wrong_backbone"),
    ("no slot", lambda files: files, {"labels": "a,b,c", "template": "hello"}, "invalid_template"),
    ("no length", lambda files: files, {"labels": "a,b,c", "max_length": "0"}, "invalid_value"),
    ("no number", lambda files: files, {"labels": "a,b,c", "max_length": "many"}, "invalid_value"),
    ("unknown field", lambda files: files, {"label": "a,b,c"}, "unknown_field"),
    ("twice", lambda files: files, {"labels": "a,b,c", "template": ["{text}", "{text}"]}, "invalid_form"),
    ("no file", lambda files: {}, {"labels": "a,b,c"}, "invalid_form"),
]


@pytest.mark.parametrize(("change", "fields", "code"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_what_is_refused_says_why_and_leaves_nothing(client, may, peft, traces, change, fields, code):
    before = traces()
    assert refused(upload(client, may, "refused", change(peft), **fields)) == (400, code)
    assert traces() == before


@pytest.mark.parametrize(
    ("change", "fields", "code"),
    [
        (with_json(UMBEL_FILE, backbone="sha256:" + "1" * 64), {}, "wrong_backbone"),
        (with_json(UMBEL_FILE, method="magic"), {}, "unknown_method"),
        (with_json(UMBEL_FILE, more=1), {}, "invalid_umbel_json"),
        (with_json(CONFIG_FILE, r=2), {}, "config_mismatch"),
        (lambda files: files, {"labels": "x,y,z"}, "contract_mismatch"),
        (lambda files: files, {"template": "Other {text}"}, "contract_mismatch"),
        (lambda files: files, {"max_length": "7"}, "contract_mismatch"),
    ],
)
def test_umbels_own_words_are_held_against_the_rest(client, may, own, traces, change, fields, code):
    before = traces()
    assert refused(upload(client, may, "refused", change(own), **fields)) == (400, code)
    assert traces() == before


def test_the_fix_for_missing_labels_names_the_field_of_an_upload(client, may, peft):
    message = upload(client, may, "refused", peft).json()["error"]["message"]
    assert "the field labels of an upload" in message


def test_what_changes_nothing_is_taken_only_if_asked_for(client, may, peft):
    silent = with_weights(silence)(peft)
    assert upload(client, may, "silent", silent, labels="a,b,c", allow_noop="true").status_code == 201


def test_a_file_that_is_sent_twice_is_refused(client, may, own, traces):
    before = traces()
    parts = [("files", (CONFIG_FILE, own[CONFIG_FILE]))] * 2
    assert refused(client.post("/v1/adapters/refused/versions", files=parts, headers=may)) == (400, "duplicate_file")
    assert traces() == before


def test_a_file_in_another_field_is_named(client, may, own):
    answer = client.post("/v1/adapters/refused/versions", files=[("weights", ("a", b"x"))], headers=may)
    assert (refused(answer), answer.json()["error"]["param"]) == ((400, "unknown_field"), "weights")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "text/plain; boundary=x", ""])
def test_a_body_that_is_no_form_is_told_what_to_send(client, may, content_type):
    headers = {**may, "content-type": content_type}
    answer = client.post("/v1/adapters/refused/versions", content=b"{}", headers=headers)
    assert refused(answer) == (400, "invalid_form")
    assert "curl -F" in answer.json()["error"]["message"]


def test_text_without_end_is_cut_off(client, may, peft, traces):
    before = traces()
    for files, fields in (
        (with_file(CONFIG_FILE, b" " * (TEXT_BYTES + 1))(peft), {}),
        (with_file(CARD_FILE, b" " * (TEXT_BYTES + 1))(peft), {}),
        (peft, {"description": "x" * (FIELD_BYTES + 1)}),
    ):
        assert refused(upload(client, may, "refused", files, **fields)) == (413, "request_too_large")
    many = {"labels": ["x"] * (MAX_PARTS + 1)}
    assert refused(upload(client, may, "refused", peft, **many)) == (400, "invalid_form")
    assert traces() == before


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_the_limit_ends_when_it_is_over(serving, home, may, own, traces, chunked):
    before = traces()
    with TestClient(app_of(serving, home, max_upload_bytes=3000), base_url="http://localhost") as client:
        request = client.build_request("POST", "/v1/adapters/refused/versions", files=parts_of(own), headers=may)
        body = request.read()
        headers = {**may, "content-type": request.headers["content-type"]}
        content = iter([body[:2000], body[2000:]]) if chunked else body
        answer = client.post("/v1/adapters/refused/versions", content=content, headers=headers)
    assert refused(answer) == (413, "request_too_large")
    assert "3000" in answer.json()["error"]["message"]
    assert "--max-upload" in answer.json()["error"]["message"]
    assert traces() == before


def parts_of(files):
    return [("files", (name, content)) for name, content in files.items()]


def test_an_upload_may_be_larger_than_any_other_body(serving, home, may, own):
    with TestClient(app_of(serving, home, max_body_bytes=100), base_url="http://localhost") as client:
        assert upload(client, may, "larger", own).status_code == 201


def test_where_many_arrive_already_one_more_is_told_when_to_come_back(serving, client, may, own, monkeypatch):
    monkeypatch.setattr(serving.service.importer, "_arriving", AT_ONCE)
    answer = upload(client, may, "refused", own)
    assert refused(answer) == (503, "too_many_uploads")
    assert answer.headers["retry-after"] == "2"


def asked_raw(app, headers, receive):
    """The status of an upload whose body the test hands over itself."""
    sent = []
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/adapters/refused/versions",
        "raw_path": b"", "query_string": b"", "scheme": "http", "server": ("localhost", 80), "client": ("x", 1),
        "headers": [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in headers.items())],
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return next((message["status"] for message in sent if message["type"] == "http.response.start"), None)


FORM = {"content-type": "multipart/form-data; boundary=x"}


def test_no_byte_is_read_from_somebody_without_a_key(serving, home):
    async def receive():
        raise AssertionError("the body was read")

    key = home.registry.keys.create("only-reads", [Scope.READ, Scope.PROMOTE])[1]
    assert asked_raw(app_of(serving, home), FORM, receive) == 401
    assert asked_raw(app_of(serving, home), {**FORM, "authorization": f"Bearer {key}"}, receive) == 403


def test_an_upload_that_does_not_come_is_given_up(serving, home, may, traces):
    before = traces()

    async def receive():
        await asyncio.Event().wait()

    assert asked_raw(app_of(serving, home, upload_seconds=0.05), {**FORM, **may}, receive) == 408
    assert traces() == before


def test_a_client_that_goes_away_midway_leaves_nothing(serving, home, may, traces):
    before = traces()
    part = b'--x\r\ncontent-disposition: form-data; name="files"; filename="README.md"\r\n\r\nhello'
    messages = [{"type": "http.request", "body": part, "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    asked_raw(app_of(serving, home), {**FORM, **may}, receive)
    assert not messages
    assert traces() == before


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("tiny", 409, "name_taken"),
        ("Not-A-Name", 400, "invalid_name"),
        ("a%00b", 400, "invalid_name"),
        ("..%2f..%2fx", 404, "route_not_found"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused(client, may, own, traces, name, status, code):
    before = traces()[0]
    assert refused(upload(client, may, name, own)) == (status, code)
    assert traces()[0] == before


@pytest.mark.parametrize("scope", [Scope.READ, Scope.INFER, Scope.PROMOTE, Scope.TRAIN])
def test_only_those_who_may_publish_upload(client, home, own, scope):
    key = home.registry.keys.create(f"u-{scope}", [scope])[1]
    assert refused(upload(client, {"authorization": f"Bearer {key}"}, "refused", own)) == (403, "insufficient_scope")
    assert refused(upload(client, {}, "refused", own)) == (401, "missing_api_key")


def test_the_servers_own_lm_head_in_a_folder_is_let_be_and_another_is_refused(client, may, home, peft, traces):
    """PEFT writes it beside LoRA on lm_head; the server compares it with the backbone that it runs."""
    tensors = load(peft[WEIGHTS_FILE])
    key = "base_model.model.lm_head.base_layer.weight"
    same = {**peft, WEIGHTS_FILE: save({**tensors, key: home.backbone.decoder.matrix("lm_head").clone()})}
    answer = upload(client, may, "copied", same, labels="negative,neutral,positive")
    assert answer.status_code == 201, answer.text
    before = traces()
    other = {**peft, WEIGHTS_FILE: save({**tensors, key: home.backbone.decoder.matrix("lm_head") + 1.0})}
    assert refused(upload(client, may, "other", other, labels="negative,neutral,positive")) == (400, "other_embeddings")
    assert traces() == before
