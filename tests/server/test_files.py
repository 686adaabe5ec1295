"""Versions that go out over HTTP, file by file, and tags."""

import pytest

from umbel.adapters.peft_io import import_folder
from umbel.core.digests import digest_bytes
from umbel.core.manifest import CARD_FILE, CONFIG_FILE, UMBEL_FILE, WEIGHTS_FILE
from umbel.registry.records import Scope

FILES = "/v1/adapters/shelf/versions/1/files"
TAGS = "/v1/adapters/shelf/tags"


@pytest.fixture(scope="module")
def keys(home):
    return {scope: home.registry.keys.create(f"f-{scope}", [scope])[1] for scope in Scope}


@pytest.fixture(scope="module")
def may(keys):
    return {"authorization": f"Bearer {keys[Scope.PUBLISH]}"}


@pytest.fixture(scope="module", autouse=True)
def shelf(client, home, may):
    """A version that was uploaded with a card."""
    digest = home.publish("bare", home.registry.versions.get("mood:1").contract, seed=91).digest
    folder = home.registry.fetch(digest).folder
    parts = [("files", (path.name, path.read_bytes())) for path in folder.iterdir()]
    files = [*parts, ("files", (CARD_FILE, "# Wörds <script>".encode()))]
    assert client.post("/v1/adapters/shelf/versions", files=files, headers=may).status_code == 201


def test_the_files_that_are_listed_are_the_folder_that_peft_reads(client, home, tmp_path):
    listed = client.get(FILES).json()["data"]
    assert {one["path"] for one in listed} == {WEIGHTS_FILE, CONFIG_FILE, UMBEL_FILE, CARD_FILE}
    for one in listed:
        content = client.get(f"{FILES}/{one['path']}").content
        assert (digest_bytes(content), len(content)) == (one["digest"], one["bytes"])
        (tmp_path / one["path"]).write_bytes(content)
    adapter = import_folder(tmp_path, home.backbone.shape, backbone=home.backbone.fingerprint)
    assert adapter.contract == home.registry.versions.get("shelf:1").contract


def test_the_etag_is_the_digest_and_what_is_there_already_is_not_sent_again(client):
    (weights,) = (one for one in client.get(FILES).json()["data"] if one["path"] == WEIGHTS_FILE)
    answer = client.get(f"{FILES}/{WEIGHTS_FILE}")
    assert answer.headers["etag"] == f'"{weights["digest"]}"'
    assert answer.headers["x-umbel-adapter"] == "shelf:1"
    same = client.get(f"{FILES}/{WEIGHTS_FILE}", headers={"if-none-match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    other = client.get(f"{FILES}/{WEIGHTS_FILE}", headers={"if-none-match": '"sha256:0"'})
    assert other.status_code == 200


def test_a_download_that_broke_off_goes_on_where_it_was(client):
    whole = client.get(f"{FILES}/{WEIGHTS_FILE}")
    headers = {"range": "bytes=100-", "if-range": whole.headers["etag"]}
    rest = client.get(f"{FILES}/{WEIGHTS_FILE}", headers=headers)
    assert (rest.status_code, rest.content) == (206, whole.content[100:])


def test_a_card_is_handed_out_as_a_file_and_never_as_a_page(client):
    answer = client.get(f"{FILES}/{CARD_FILE}")
    assert answer.text == "# Wörds <script>"
    assert answer.headers["content-disposition"] == f'attachment; filename="{CARD_FILE}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"].startswith("text/markdown")


def test_an_alias_and_a_digest_name_a_version_too(client, home):
    digest = home.registry.versions.get("shelf:1").digest
    for which in ("champion", digest):
        assert client.get(f"/v1/adapters/shelf/versions/{which}/files").json() == client.get(FILES).json()


@pytest.mark.parametrize(
    "path",
    [
        "absent.json",
        "..%2f..%2fregistry.db",
        "%2e%2e/%2e%2e/registry.db",
        "%252e%252e%252fregistry.db",
        "/etc/passwd",
        "umbel.json%00",
        "..%5cumbel.json",
        "",
    ],
)
def test_what_is_not_on_the_list_is_not_there(client, home, path):
    answer = client.get(f"{FILES}/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("file_not_found", "route_not_found")
    assert str(home.settings.home) not in answer.text


@pytest.mark.parametrize("which", ["9", "nobody", "sha256:" + "0" * 64])
def test_a_version_that_is_not_there_is_a_404(client, which):
    assert client.get(f"/v1/adapters/shelf/versions/{which}/files").status_code == 404
    assert client.get(f"/v1/adapters/shelf/versions/{which}/files/{UMBEL_FILE}").status_code == 404


def test_bytes_that_changed_on_the_disk_are_never_handed_out(client, home):
    version = home.publish("rotten", home.registry.versions.get("mood:1").contract, seed=92)
    (weights,) = (one for one in version.files if one.path == WEIGHTS_FILE)
    blob = home.registry.store.path(weights.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * weights.bytes)
    answer = client.get(f"/v1/adapters/rotten/versions/1/files/{WEIGHTS_FILE}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "artifact_corrupt")


def test_tags_are_set_replaced_found_and_taken_away(client, may):
    assert client.put(f"{TAGS}/team", json={"value": "search"}, headers=may).json() == {"team": "search"}
    assert client.put(f"{TAGS}/lang", json={"value": "en=us"}, headers=may).json() == {
        "lang": "en=us",
        "team": "search",
    }
    assert client.put(f"{TAGS}/team", json={"value": "ads"}, headers=may).json()["team"] == "ads"
    found = client.get("/v1/adapters", params={"tag": "team=ads"}).json()["data"]
    assert [one["name"] for one in found] == ["shelf"]
    assert client.delete(f"{TAGS}/team", headers=may).json() == {"lang": "en=us"}
    assert client.delete(f"{TAGS}/team", headers=may).json() == {"lang": "en=us"}
    client.delete(f"{TAGS}/lang", headers=may)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (f"{TAGS}/{'k' * 65}", {"value": "x"}, 400, "invalid_tag"),
        (f"{TAGS}/a%00b", {"value": "x"}, 400, "invalid_tag"),
        (f"{TAGS}/key", {"value": "two\nlines"}, 400, "invalid_tag"),
        (f"{TAGS}/key", {"value": "x" * 513}, 400, "invalid_value"),
        (f"{TAGS}/key", {"value": 3}, 400, "invalid_value"),
        (f"{TAGS}/key", {}, 400, "missing_field"),
        (f"{TAGS}/key", {"value": "x", "more": 1}, 400, "unknown_field"),
        (f"{TAGS}/a%2fb", {"value": "x"}, 404, "route_not_found"),
        ("/v1/adapters/nope/tags/key", {"value": "x"}, 404, "adapter_not_found"),
        ("/v1/adapters/tiny/tags/key", {"value": "x"}, 404, "adapter_not_found"),
    ],
)
def test_a_tag_that_cannot_be_kept_says_why(client, may, path, body, status, code):
    answer = client.put(path, json=body, headers=may)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert client.get("/v1/adapters/shelf").json()["tags"] == {}


def test_one_tag_too_many_is_refused(client, may):
    answers = [client.put(f"{TAGS}/k{number}", json={"value": "x"}, headers=may) for number in range(17)]
    assert [answer.status_code for answer in answers] == [200] * 16 + [400]
    assert answers[-1].json()["error"]["code"] == "too_many_tags"
    for number in range(16):
        client.delete(f"{TAGS}/k{number}", headers=may)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_only_those_who_may_publish_tag(client, keys, method):
    for scope in (Scope.READ, Scope.PROMOTE):
        headers = {"authorization": f"Bearer {keys[scope]}"}
        answer = client.request(method, f"{TAGS}/key", json={"value": "x"}, headers=headers)
        assert answer.json()["error"]["code"] == "insufficient_scope"
