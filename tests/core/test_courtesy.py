"""Work in the background asks before each piece; nobody else is asked to wait."""

from concurrent.futures import ThreadPoolExecutor

from umbel.core.courtesy import give_way, give_way_by
from umbel.core.digests import digest_file
from umbel.core.kept import KeptFiles

MANY = 3 << 20
"""Bytes of several pieces."""


def asked(work):
    """How often work on a thread that gives way asked whether it may go on."""
    found = []
    with ThreadPoolExecutor(1, initializer=give_way_by, initargs=(lambda: found.append(1),)) as other:
        other.submit(work).result()
    return len(found)


def test_only_a_thread_that_gives_way_is_asked_to():
    assert asked(give_way) == 1
    assert asked(lambda: None) == 0
    give_way()  # this thread was never told


def test_long_work_gives_way_between_pieces(tmp_path):
    files = KeptFiles(tmp_path / "kept", 1 << 30)
    data = bytes(range(256)) * (MANY // 256)
    (tmp_path / "file").write_bytes(data)
    assert asked(lambda: digest_file(tmp_path / "file")) >= 3
    assert asked(lambda: files.put("a-key", data)) >= 3
    assert asked(lambda: files.get("a-key")) >= 3
    assert files.get("a-key") == data
