"""What changes a server's holdings, from both clients: uploads, exports, tags, adapters loaded by hand."""

import asyncio
import json

import httpx2
import pytest

from umbel.client import AsyncClient, Client
from umbel.core.errors import AdapterRefused, Conflict, NotFound, UmbelError, UsageError
from umbel.core.manifest import CARD_FILE, CONFIG_FILE, UMBEL_FILE, WEIGHTS_FILE


@pytest.fixture(scope="module")
def key(home):
    return home.registry.keys.create("curating", ["publish"])[1]


@pytest.fixture(scope="module")
def api(live, key):
    with Client(live.url, key) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(home, tmp_path_factory):
    """What PEFT would have written, with a trainer's pickle beside it."""
    home.publish("taken-out", home.registry.versions.get("mood:1").contract, seed=95)
    written = home.registry.export("taken-out:1", tmp_path_factory.mktemp("out") / "adapter")
    (written / UMBEL_FILE).unlink()
    (written / "training_args.bin").write_bytes(b"a pickle")
    return written


def test_a_folder_goes_in_and_comes_out_with_every_byte(api, folder, tmp_path):
    version = api.adapters.upload("round", folder, labels=["a, b", "c", "d"], template="T {text}", max_length=30)
    assert version.contract.labels == ("a, b", "c", "d")
    assert (version.contract.template, version.contract.max_length) == ("T {text}", 30)
    out = api.adapters.export("round", tmp_path / "out", version.number)
    assert {path.name for path in out.iterdir()} == {one.path for one in api.adapters.files("round")}
    assert (out / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
    again = api.adapters.upload("round", out)
    assert (again.number, again.digest) == (version.number, version.digest)


def test_an_export_has_the_figures_beside_the_bytes_that_they_are_of(api, home, tmp_path):
    out, version = api.adapters.export("taken-out", tmp_path / "out"), home.registry.versions.get("taken-out:1")
    assert json.loads((out / "metrics.json").read_bytes()) == {"digest": version.digest, "metrics": version.metrics}
    assert version.metrics


def test_figures_of_an_export_go_in_with_it(api, tmp_path):
    version = api.adapters.upload("measured", api.adapters.export("taken-out", tmp_path / "out"))
    assert version.metrics == api.adapters.version("taken-out", 1).metrics != {}


def test_one_file_is_downloaded_as_it_is(api):
    assert api.adapters.download("taken-out", CONFIG_FILE).startswith(b"{")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "missing_labels"),
        ({"labels": ("a", "b")}, "label_count_mismatch"),
        ({"labels": ("a", "b", "c"), "backbone": "llama"}, "wrong_backbone"),
        ({"labels": ("a", "b", "c"), "template": "x"}, "invalid_template"),
    ],
)
def test_a_refusal_is_the_adapters_own_error(api, folder, options, code):
    with pytest.raises(UsageError) as met:
        api.adapters.upload("refused", folder, **options)
    assert met.value.code == code
    assert met.value.hint


def test_a_folder_without_an_adapter_is_not_sent(api, tmp_path):
    with pytest.raises(NotFound) as met:
        api.adapters.upload("refused", tmp_path)
    assert met.value.code == "file_not_found"


def test_an_export_never_writes_over_what_is_there(api, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(Conflict):
        api.adapters.export("taken-out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_tags_and_residents_are_changed(api):
    assert api.adapters.set_tag("taken-out", "team", "search") == {"team": "search"}
    assert api.adapters.remove_tag("taken-out", "team") == {}
    api.adapters.unload("taken-out")
    assert api.adapters.warm("taken-out", timeout=30).changed
    assert "taken-out:1" in [one.adapter for one in api.status().resident]
    assert api.adapters.unload("taken-out", 1).resident is False


def test_a_bound_below_which_no_label_is_given_goes_with_the_request(api):
    answer = api.classify("mood", "hello", abstain_below=1.0).data[0]
    assert (answer.label, answer.abstained) == (None, True)


def test_the_async_client_does_the_same(live, key, folder, tmp_path):
    async def main():
        async with AsyncClient(live.url, key) as client:
            adapters = client.adapters
            version = await adapters.upload("round-async", folder, labels=["a", "b", "c"])
            out = await adapters.export("round-async", tmp_path / "out")
            tags = await adapters.set_tag("round-async", "a", "b"), await adapters.remove_tag("round-async", "a")
            held = await adapters.warm("round-async"), await adapters.unload("round-async")
            content = await adapters.download("round-async", WEIGHTS_FILE, version.digest)
            kept = (await client.classify("mood", "hello", abstain_below=1.0)).data[0].abstained
            return out, tags, held, content, kept

    out, tags, held, content, kept = asyncio.run(main())
    assert tags == ({"a": "b"}, {})
    assert [one.resident for one in held] == [True, False]
    assert content == (out / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
    assert kept


class Lying(httpx2.BaseTransport):
    """A server whose list of files is not to be trusted."""

    def __init__(self, view, path, digest):
        self.view, self.file = view, {"path": path, "digest": digest, "bytes": 1}

    def handle_request(self, request):
        if request.url.path.endswith("/files"):
            return httpx2.Response(200, json={"data": [self.file]})
        if "/files/" in request.url.path:
            return httpx2.Response(200, content=b"x")
        return httpx2.Response(200, json=self.view)


X = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


@pytest.mark.parametrize(
    ("path", "digest", "error", "code"),
    [
        ("../escaped", X, AdapterRefused, "unsafe_path"),
        ("/tmp/escaped", X, AdapterRefused, "unsafe_path"),
        (CARD_FILE, "sha256:" + "0" * 64, UmbelError, "digest_mismatch"),
    ],
)
def test_a_server_is_not_believed_about_names_and_bytes(api, tmp_path, path, digest, error, code):
    view = api.adapters.version("taken-out").model_dump(mode="json")
    with Client("http://x", transport=Lying(view, path, digest)) as client, pytest.raises(error) as met:
        client.adapters.export("taken-out", tmp_path / "out")
    assert met.value.code == code
    assert not (tmp_path / "escaped").exists()
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]
