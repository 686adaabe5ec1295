"""The peers benchmark: lines between processes survive a library that prints, and the page compares with the best."""

import sys
import time

import pytest
from benchmarks.peers.llamacpp import BATCH, together
from benchmarks.peers.page import page
from benchmarks.peers.run import Idle, rounds_of, trimmed
from benchmarks.peers.system import ROOT, PeerFailed, Process
from benchmarks.work import Work, works

NOISY = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.peers.lines import serve

def load(job):
    print("a library says hello")
    os.system("echo and so does a program")
    return run, {{"version": job["version"]}}

def run(job):
    print("and again")
    if job["double"] < 0:
        raise SystemExit("no such work")
    return {{"twice": 2 * job["double"]}}

serve(load)
"""


@pytest.fixture
def peer(tmp_path):
    script = tmp_path / "noisy.py"
    script.write_text(NOISY)
    started = Process([sys.executable, str(script)], {"version": "1.2"}, tmp_path / "log")
    yield started
    started.close()


def test_what_a_peer_prints_is_in_its_log_and_never_in_its_answers(peer):
    assert peer.facts == {"version": "1.2"}
    assert [peer.ask({"double": n}) for n in (1, 21)] == [{"twice": 2}, {"twice": 42}]
    assert {"a library says hello", "and so does a program", "and again"} <= set(peer.log.read_text().splitlines())


def test_a_peer_that_ends_is_an_error_that_names_its_log(peer):
    with pytest.raises(PeerFailed, match=r"code 1.*log"):
        peer.ask({"double": -1})
    assert "no such work" in peer.log.read_text()
    with pytest.raises(PeerFailed):
        peer.ask({"double": 1})


def test_a_waiting_peer_takes_no_processor_time(peer):
    before = peer.cpu_seconds()
    time.sleep(0.3)
    assert peer.cpu_seconds() == before
    peer.ask({"double": 1})


def test_the_work_of_one_s_own_turn_is_not_counted_as_idling():
    class Busy:
        spent = 0.0

        def cpu_seconds(self):
            return self.spent

    busy, other = Busy(), Busy()
    idle = Idle([busy, other])
    with idle.beside(busy):
        busy.spent += 100
        time.sleep(0.01)
    assert idle.share() == 0
    with idle.beside(busy):
        other.spent += 1
    assert idle.share() > 1


def test_prompts_are_never_split_over_llama_cpp_s_calls():
    groups = together([[0] * 900] * 5)
    assert groups == [[0, 1], [2, 3], [4]]
    assert together([[0] * BATCH]) == [[0]]


def test_a_work_of_fewer_requests_says_so_in_its_name():
    work = Work("32 requests, bare backbone", [None] * 32)
    assert trimmed(work, 2) == Work("32 requests, bare backbone (only 2 of them)", [None] * 2)
    assert trimmed(work, None) == trimmed(work, 32) == work


def told(rate, **more):
    times = {"ttft_p50_ms": 1.0, "ttft_p95_ms": 2.0, "gap_p50_ms": 3.0, "gap_p95_ms": 4.0, "gap_p99_ms": 5.0}
    return {"tokens_per_s": rate, **(times if more.get("tells", True) else {})}


@pytest.fixture
def found():
    bare = {
        "work": "1 request, bare backbone",
        "requests": 1,
        "umbel": told(100.0),
        "HF + PEFT": told(50.0, tells=False),
        "vLLM eager": told(40.0),
        "vLLM compiled": told(80.0),
        "failed": {"llama.cpp Q4_1": "it ended with code 1; see log"},
        "idle_cpu": 0.004,
    }
    return {
        "when": "2026-11-25T00:00+00:00",
        "command": "make bench-peers ARGS=--short",
        "new_tokens": 64,
        "rounds": 3,
        "machine": {"cores": 2},
        "peers": {"vLLM eager": {"version": "0.32.0", "torch": "2.13.0"}, "llama.cpp Q4_1": {}},
        "works": [bare],
    }


def test_a_work_of_few_requests_has_more_rounds():
    asked = {work.concurrent: rounds_of(work, 2) for work in works(short=False)}
    assert asked == {1: 16, 8: 2, 32: 2}


def test_the_ratio_is_to_the_better_of_vllm_s_settings(found):
    assert "| 100 |  | 50 | 40 | 80 | failed | 2.0x | 1.2x |  |" in page(found)
    found["works"][0]["vLLM eager"] = told(200.0)
    assert "| 0.5x |" in page(found)


def test_llama_cpp_s_four_bits_are_beside_ours(found):
    found["works"][0] |= {"umbel int4": told(150.0), "llama.cpp Q4_1": told(60.0), "failed": {}}
    assert "| 100 | 150 | 50 | 40 | 80 | 60 | 2.0x | 1.2x | 2.5x |" in page(found)


def test_a_peer_that_failed_or_was_not_there_is_said(found):
    text = page(found)
    assert "- 1 request, bare backbone, llama.cpp Q4_1: it ended with code 1; see log" in text
    assert "- vLLM eager: 0.32.0, torch 2.13.0" in text
    assert "0.4% of a core" in text


def test_where_a_ratio_is_to_be_is_beside_what_it_is_and_what_bounds_it(found):
    lone = "1 request, bare backbone: umbel over vLLM"
    assert f"| {lone} | 1.6x | 2.8x | 1.2x | missed |" in page(found)
    assert f"- **{lone}**: a step of one row reads all weights" in page(found)
    found["works"][0]["umbel"] = told(160.0)
    assert f"| {lone} | 1.6x | 2.8x | 2.0x | floor |" in page(found)
    found["works"][0]["umbel"] = told(224.0)
    assert f"| {lone} | 1.6x | 2.8x | 2.8x | want |" in page(found)
    assert f"- **{lone}**" not in page(found)
    assert "| 32 requests, 8 LoRAs: umbel over HF + PEFT | 3.5x | 5x |  | not measured |" in page(found)
