"""Files that are kept come back whole, into whatever memory the reader gives, or not at all."""

import pytest

from umbel.core.courtesy import PIECE
from umbel.core.kept import KeptFiles

LONG = bytes(range(256)) * (PIECE // 256 * 2 + 3)


@pytest.fixture
def files(tmp_path):
    return KeptFiles(tmp_path / "kept", 1 << 30)


@pytest.mark.parametrize("data", [b"a", LONG, LONG[:PIECE], LONG[: PIECE - 4]])
def test_what_was_put_comes_back(files, data):
    files.put("a-key", data[:1], bytearray(data[1:]))
    assert files.get("a-key") == data
    room = bytearray(len(data) + 100)
    found = files.get("a-key", lambda size: memoryview(room)[:size])
    assert found == data
    assert found.obj is room


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[:PIECE],
        lambda data: data[:3],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[: PIECE + 5] + b"?" + data[PIECE + 6 :],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
)
def test_a_file_with_any_byte_amiss_is_gone(files, harm):
    files.put("a-key", LONG)
    path = files.path("a-key")
    path.write_bytes(harm(path.read_bytes()))
    assert files.get("a-key") is None
    assert not path.exists()
