"""The page of `make bench-targets`, and the arithmetic behind its rows."""

import argparse

import pytest
import torch
from benchmarks.systems import InMemory
from benchmarks.targets import machine, run, table
from benchmarks.targets.crowd import Folders
from benchmarks.targets.drive import Driver, ask
from benchmarks.targets.found import Found, percentile
from benchmarks.targets.limit import amounts
from benchmarks.work import LORA, Work

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.peft_io import load_adapter
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract
from umbel.core.errors import UmbelError, Unavailable
from umbel.core.shape import BackboneShape
from umbel.engine import Engine

SHAPE = BackboneShape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=32)


def found(value):
    return Found(value, value, value, "seen")


def test_a_row_that_was_not_measured_says_so_and_shows_no_number():
    lines = table.lines({"machine": {}, "rows": {}})
    assert len(lines) == 2 + len(table.TARGETS)
    assert all(line.endswith("| not measured | | | |") for line in lines[2:])


def test_rows_that_are_measured_later_leave_the_others_as_they_were(tmp_path):
    file = tmp_path / "targets.json"
    run.keep(file, {"cold": found(160.0)}, short=False)
    run.keep(file, {"crowd": found(0.85), "slots-zipf": found(1.05)}, short=True)
    rows = {line.split(" | ")[1]: line for line in file.with_suffix(".md").read_text().splitlines() if " | " in line}
    by_key = {target.key: rows[target.name] for target in table.TARGETS}
    assert "| 160 ms | 160 ms - 160 ms | missed | seen |" in by_key["cold"]
    assert "| ≥ 0.80x | ≥ 0.90x | 0.85x | 0.85x - 0.85x | floor | seen (short form) |" in by_key["crowd"]
    assert "| want |" in by_key["slots-zipf"]
    assert "not measured" in by_key["flood"]


def test_what_bounds_a_row_is_told_only_where_it_falls_short_of_the_goal(monkeypatch):
    target = table.Target("cold", "d", "cold", 150, 50, "ms", bound="the disk.")
    monkeypatch.setattr(table, "TARGETS", (target,))
    row = {"low": 1, "high": 1, "detail": "", "short": False}
    assert "the disk." in table.page({"machine": {}, "rows": {"cold": {"value": 51, **row}}})
    assert "the disk." not in table.page({"machine": {}, "rows": {"cold": {"value": 50, **row}}})


def test_letters_that_stand_for_nothing_are_refused():
    assert run._parts("c,d") == ["c", "d"]
    with pytest.raises(argparse.ArgumentTypeError, match="'c,x' is not some of"):
        run._parts("c,x")


def test_the_least_amount_of_work_is_counted_by_hand_for_a_small_backbone():
    """2 layers of 8x8 q, o; 8x4 k, v; 8x16 gate, up, down: 1,152 weights. LoRA of rank 16: 2 * 16 * 152."""
    work = Work("", [0, 1, 0], [("lora", LORA)] * 2, new_tokens=3)
    linears, lora, lm_head = 2 * (64 + 32 + 32 + 64 + 3 * 128), 2 * 16 * (16 + 12 + 12 + 16 + 3 * 24), 8 * 32
    prefill, first, second = amounts(SHAPE, work)
    weights = 2 * (linears + lm_head + 2 * lora)
    assert prefill.bytes == weights + 3 * 128 * 2 * 2 * 2 * 4
    assert prefill.flops == 3 * (128 * 2 * (linears + lora) + 4 * 2 * 8 * (128 * 129 // 2) + 2 * lm_head)
    assert first.bytes == weights + 3 * 129 * 2 * 2 * 2 * 4
    assert second.flops == 3 * (2 * (linears + lora + lm_head) + 4 * 2 * 8 * 130)


def test_the_crowd_is_of_different_files_that_load_and_are_checked(tmp_path):
    contract, bound = Contract(output_head="generate"), f"sha256:{7:064x}"
    made = fresh_adapter("lora", {"rank": 2}, contract, SHAPE, backbone=bound, seed=0)
    for name, tensor in made.weights.tensors.items():
        made.weights.tensors[name] = tensor.to(torch.bfloat16)
    source = Folders(tmp_path, made, 300)
    first, last = (load_adapter(source.fetch(digest), SHAPE) for digest in (*source.stored,)[::299])
    differ = [n for n, t in first.weights.tensors.items() if not torch.equal(t, last.weights.tensors[n])]
    assert len(source.stored) == 300
    assert len(differ) == 1
    (tmp_path / "5" / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(Unavailable, match="is not what it was"):
        source.fetch(list(source.stored)[5])


def test_a_percentile_is_a_value_that_was_seen():
    assert percentile([5.0, 1.0, 3.0, 2.0], 95) == 5.0
    assert percentile([5.0, 1.0, 3.0, 2.0], 50) == 2.0


@pytest.fixture
def driver(tmp_path):
    engine = Engine(load_backbone(tiny_backbone(tmp_path / "tiny")), InMemory(), kv_bytes=1 << 20, adapter_bytes=0)
    yield Driver(engine)
    engine.close()


def test_a_closed_loop_keeps_as_many_requests_on_their_way_and_ends_with_all_of_them(driver, monkeypatch):
    on_their_way = []
    step = driver.engine.step
    monkeypatch.setattr(driver.engine, "step", lambda: on_their_way.append(len(driver.live)) or step())
    requests = [ask([1 + i, 2, 3], new_tokens=2) for i in range(7)]
    _, seen = driver.closed_loop(requests, 3)
    assert [len(one.arrivals) for one in seen] == [2] * 7
    assert max(on_their_way) == 3


def test_a_request_that_fails_stops_the_measuring(driver):
    driver.ask(ask([1], f"sha256:{1:064x}", new_tokens=1))
    with pytest.raises(UmbelError):
        driver.finish()


def test_the_buffer_that_is_read_for_bandwidth_is_larger_than_the_last_cache(tmp_path):
    for number, size in enumerate(("32K", "1024K", "8192K")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert machine.last_cache(tmp_path) == 8 << 20
    assert machine.last_cache(tmp_path / "none") == 0


def test_the_limit_is_that_of_the_faster_product_of_bf16_and_fp32(monkeypatch):
    """Where bf16 is emulated its product is no limit of what can be done with bf16 numbers."""
    monkeypatch.setattr(machine, "_LEAST", 1 << 20)
    monkeypatch.setattr(machine, "_SIDE", 64)
    for slow in (torch.bfloat16, torch.float32):
        took = {slow: 2.0, **{dtype: 1.0 for dtype in (torch.bfloat16, torch.float32) if dtype != slow}}
        monkeypatch.setattr(machine, "_seconds", lambda call, took=took: took[call().dtype])
        probed = machine.Machine()
        probed.probe()
        assert probed.flops == 2 * 64**3 / 1.0


def test_a_probe_that_was_disturbed_does_not_lower_the_machines_limit(monkeypatch):
    """Another process on a core makes one probe slow; the ratio of a whole run must not hang on when that was."""
    monkeypatch.setattr(machine, "_LEAST", 1 << 20)
    monkeypatch.setattr(machine, "_SIDE", 64)
    probed, seen = machine.Machine(), []
    for _ in range(20):
        probed.probe(1)
        seen.append((probed.bandwidth, probed.flops))
    assert seen == sorted(seen)
    assert [flops for _, flops in seen] == sorted(flops for _, flops in seen)
    assert min(seen[0]) > 0
