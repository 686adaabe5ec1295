"""The store of rows: whole files or none, bounded, and never a reason for a training to stop."""

import os

import pytest
import torch

from umbel.training.trunk.rowstore import RowStore

ROWS = torch.arange(12.0).view(3, 4)


def store(tmp_path, limit=10_000, in_memory=0):
    return RowStore(tmp_path / "rows", limit, in_memory=in_memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_put_is_found_by_another_process_bit_for_bit(tmp_path, dtype):
    store(tmp_path).put("ab12", ROWS.to(dtype))
    found = store(tmp_path).get("ab12", dtype, 4)
    assert found.equal(ROWS.to(dtype))
    assert found.dtype == dtype


def test_a_row_that_was_never_put_is_not_found(tmp_path):
    assert store(tmp_path).get("ab12", torch.float32, 4) is None


@pytest.mark.parametrize("harm", [lambda data: data[:-5], lambda data: b"\x01" + data[1:], lambda data: b""])
def test_a_torn_file_is_removed_and_made_again(tmp_path, harm):
    kept = store(tmp_path)
    kept.put("ab12", ROWS)
    path = tmp_path / "rows" / "ab" / "ab12"
    path.write_bytes(harm(path.read_bytes()))
    assert kept.get("ab12", torch.float32, 4) is None
    kept.put("ab12", ROWS)
    assert kept.get("ab12", torch.float32, 4).equal(ROWS)


def test_the_limit_holds_and_what_was_used_longest_ago_goes_first(tmp_path):
    kept = store(tmp_path, limit=300)  # a row takes 52 bytes
    for place in range(5):
        kept.put(f"0{place}", ROWS)
        os.utime(tmp_path / "rows" / f"0{place}" / f"0{place}", (place, place))
    kept.get("00", torch.float32, 4)  # used now
    kept.put("05", ROWS)
    sizes = [path.stat().st_size for path in (tmp_path / "rows").rglob("*") if path.is_file()]
    assert sum(sizes) <= 300
    assert kept.get("00", torch.float32, 4) is not None
    assert kept.get("05", torch.float32, 4) is not None
    assert kept.get("01", torch.float32, 4) is None


def test_the_limit_counts_what_other_processes_wrote(tmp_path):
    for each in range(20):
        store(tmp_path, limit=300).put(f"{each:02}", ROWS)
    assert sum(path.stat().st_size for path in (tmp_path / "rows").rglob("*") if path.is_file()) <= 300


def test_a_row_larger_than_the_limit_is_only_held_in_memory(tmp_path):
    kept = store(tmp_path, limit=10, in_memory=1000)
    kept.put("ab12", ROWS)
    assert kept.get("ab12", torch.float32, 4).equal(ROWS)
    assert not (tmp_path / "rows").exists()


def test_memory_is_bounded_too(tmp_path):
    kept = store(tmp_path, limit=0, in_memory=100)  # two rows of 48 bytes
    for name in ("aa", "bb", "cc"):
        kept.put(name, ROWS)
    assert kept.get("aa", torch.float32, 4) is None
    assert kept.get("cc", torch.float32, 4) is not None


def test_a_disk_that_takes_nothing_is_no_error(tmp_path):
    (tmp_path / "rows").write_text("a file where the folder should be")
    kept = store(tmp_path, in_memory=1000)
    kept.put("ab12", ROWS)
    assert kept.get("ab12", torch.float32, 4).equal(ROWS)


def test_it_may_be_deleted_at_any_time(tmp_path):
    import shutil

    kept = store(tmp_path)
    kept.put("ab12", ROWS)
    shutil.rmtree(tmp_path / "rows")
    assert kept.get("ab12", torch.float32, 4) is None
    kept.put("ab12", ROWS)
    assert kept.get("ab12", torch.float32, 4).equal(ROWS)
