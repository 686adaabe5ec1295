"""Multipart forms as they come from a socket: in pieces of any size, whole or cut."""

import asyncio

import httpx2
import pytest

from umbel.core.errors import UsageError
from umbel.core.manifest import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from umbel.server.uploads import receive


def received(body, content_type, folder, size=100_000):
    async def chunks():
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return asyncio.run(receive(content_type, chunks(), folder))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
def test_a_form_means_the_same_however_it_is_cut(tmp_path, size):
    files = {CONFIG_FILE: b"--x\r\n--y\r\n\r\n" * 9, WEIGHTS_FILE: bytes(range(256)) * 3, CARD_FILE: b"\r\n--"}
    parts = [("files", file) for file in files.items()]
    request = httpx2.Request("POST", "http://x", files=parts, data={"labels": ["ä", "b"], "template": "t"})
    found = received(request.read(), request.headers["content-type"], tmp_path, size)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert found.fields == {"labels": ["ä", "b"], "template": ["t"]}


HALF = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb'


@pytest.mark.parametrize("body", [b"", b"nonsense", b"--x\r\n", HALF])
def test_a_form_that_is_cut_is_refused(tmp_path, body):
    with pytest.raises(UsageError) as met:
        received(body, "multipart/form-data; boundary=x", tmp_path)
    assert met.value.code == "invalid_form"
