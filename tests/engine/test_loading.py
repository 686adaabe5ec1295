"""Adapters come and go beside the step: loads never stop decoding, and a missing one is never the bare backbone."""

import functools
import gc
import os
import sys
import threading
import weakref

import pytest
import torch
from tests.engine.conftest import Lab

from umbel.adapters.peft_io import export_files, load_adapter
from umbel.core.errors import AdapterRefused, NotFound, UmbelError, Unavailable, UsageError
from umbel.core.manifest import WEIGHTS_FILE, Manifest
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.engine.resident import make_resident


def error_of(lab, engine, request):
    handle = engine.submit(request)
    lab.drain(engine)
    events = list(handle)
    assert len(events) == 1, "nothing may be answered before the error"
    return events[0].error


def test_an_adapter_that_does_not_exist_is_an_error_and_no_answer(lab):
    error = error_of(lab, lab.engine(), lab.ask("hello", "sha256:" + "0" * 64))
    assert isinstance(error, NotFound)
    assert error.code == "version_not_found"


def test_an_adapter_whose_files_are_gone_fails_again_after_it_was_evicted(lab):
    digest = lab.adapter("lora", 1)
    engine = lab.engine()
    lab.run(engine, [lab.ask("hello", digest)])
    engine.bank.evict(engine.bank.get(digest))
    lab.source.broken[digest] = Unavailable("adapter_model.safetensors is missing.", code="artifact_corrupt")
    assert error_of(lab, engine, lab.ask("hello", digest)).code == "artifact_corrupt"


def test_an_unexpected_fault_of_a_load_tells_no_secrets(lab):
    digest = lab.adapter("lora", 1)
    lab.source.broken[digest] = OSError("/secret/path: input/output error")
    error = error_of(lab, lab.engine(), lab.ask("hello", digest))
    assert error.code == "adapter_load_failed"
    assert "secret" not in str(error)


def test_an_adapter_of_another_backbone_is_refused(lab):
    digest = lab.adapter("lora", 1, fingerprint="sha256:" + "2" * 64)
    error = error_of(lab, lab.engine(), lab.ask("hello", digest))
    assert isinstance(error, AdapterRefused)
    assert error.code == "wrong_backbone"


def test_a_source_that_hands_out_another_version_is_caught(lab):
    one, two = lab.adapter("lora", 1), lab.adapter("lora", 2)
    fetch = lab.source.fetch
    lab.source.fetch = lambda digest: fetch(two if digest == one else digest)
    assert error_of(lab, lab.engine(), lab.ask("hello", one)).code == "digest_mismatch"


def test_a_failing_load_fails_its_own_requests_only(lab):
    good, missing = lab.adapter("lora", 1), "sha256:" + "0" * 64
    engine = lab.engine()
    handles = [engine.submit(lab.ask(f"text {i}", [good, missing, None][i % 3])) for i in range(9)]
    lab.drain(engine)
    reasons = [list(handle)[-1].reason for handle in handles]
    assert reasons == ["length", "error", "length"] * 3


def test_a_failed_load_is_remembered_for_seconds_and_then_tried_again(lab):
    digest, engine = lab.adapter("lora", 1), lab.engine()
    lab.source.broken[digest] = Unavailable("the store is away.", code="store_away")
    for _ in range(3):
        assert error_of(lab, engine, lab.ask("hello", digest)).code == "store_away"
    assert lab.source.fetched == [digest]
    del lab.source.broken[digest]
    lab.now += 6
    assert lab.run(engine, [lab.ask("hello", digest)])[0].ids


def test_decoding_goes_on_and_others_pass_while_an_adapter_loads(lab):
    slow, quick = lab.adapter("lora", 1), lab.adapter("lora", 2)
    engine = lab.engine()
    lab.run(engine, [lab.ask("warm", quick)])
    lab.source.gate.clear()
    waiting = engine.submit(lab.ask("first", slow))
    passing = [engine.submit(lab.ask("second", adapter)) for adapter in (quick, None)]
    while not all(handle.done for handle in passing):
        engine.step()
    assert not waiting.done
    lab.now += 2.0
    lab.source.gate.set()
    lab.drain(engine)
    timing = waiting.result().finished.timing
    assert (timing.load_ms, timing.queue_ms) == (2000.0, 0.0)


def loaded(engine):
    """Waits until the loader's thread has nothing to do."""
    engine.scheduler.loader._pool.submit(int).result(30)


def test_waiting_adapters_are_loaded_ahead_while_all_rows_are_taken(lab):
    later = [lab.adapter("lora", seed) for seed in range(3)]
    engine = lab.engine(max_rows=1)
    running = engine.submit(lab.ask("long", max_tokens=200))
    for digest in later:
        engine.submit(lab.ask("later", digest))
    engine.step()
    loaded(engine)
    engine.step()
    assert all(digest in engine.bank for digest in later)
    assert not running.done


def test_a_load_that_failed_is_answered_while_all_rows_are_taken(lab):
    engine = lab.engine(max_rows=1)
    running = engine.submit(lab.ask("long", max_tokens=200))
    missing = engine.submit(lab.ask("hello", "sha256:" + "0" * 64))
    engine.step()
    loaded(engine)
    engine.step()
    assert missing.done
    assert not running.done


def test_few_slots_serve_many_adapters_one_after_another(lab):
    digests = [lab.adapter("lora", seed, rank=4) for seed in range(12)]
    alone = [lab.run(lab.engine(), [lab.ask("hello", digest)])[0] for digest in digests]
    probe = lab.engine()
    lab.run(probe, [lab.ask("hello", digests[0])])
    engine = lab.engine(adapter_bytes=2 * probe.bank.used, lookahead=3)
    requests = [lab.ask("hello", digests[i % 12]) for i in range(36)]
    for i, answer in enumerate(lab.run(engine, requests)):
        lab.same(answer, alone[i % 12])
    assert engine.bank.used <= engine.bank.budget
    assert engine.stats().evictions >= 10


def test_an_adapter_too_large_for_the_engine_fails_with_both_numbers(lab):
    error = error_of(lab, lab.engine(adapter_bytes=1000), lab.ask("hello", lab.adapter("lora", 1)))
    assert error.code == "adapter_too_large"
    assert "1000" in error.message


@pytest.mark.parametrize("generating", [True, False])
def test_an_output_head_is_not_asked_for_what_it_does_not_do(lab, generating):
    digest = lab.classifier(1) if generating else lab.adapter("lora", 1)
    request = lab.ask("hello", digest) if generating else lab.pool("hello", digest)
    error = error_of(lab, lab.engine(), request)
    assert isinstance(error, UsageError)
    assert error.code == "wrong_output_head"


def test_loads_run_on_a_thread_of_their_own(lab):
    threads = []
    load = lab.source.load
    lab.source.load = lambda stored: threads.append(threading.current_thread()) or load(stored)
    lab.run(lab.engine(), [lab.ask("hello", lab.adapter("lora", 1))])
    assert threads[0] is not threading.current_thread()


@pytest.fixture
def on_disk(lab, tmp_path):
    """A version's real files; on_disk.source reads them as the registry's store would hand them out."""
    digest = lab.adapter("lora", 5, rank=4)
    adapter = lab.source.adapters[digest]
    for name, content in export_files(adapter, backbone_name="tiny").items():
        (tmp_path / name).write_bytes(content)
    manifest = Manifest(
        method="lora", config=adapter.config, contract=adapter.contract, backbone=adapter.backbone, files=()
    )
    lab.source.fetch = lambda asked: StoredAdapter(VersionRef("disk", 1, asked), manifest, tmp_path)
    lab.source.load = functools.partial(load_adapter, shape=lab.backbone.shape)
    return digest


def test_an_adapter_from_its_files_answers_as_the_one_in_memory(lab, on_disk):
    answer = lab.run(lab.engine(), [lab.ask("hello", on_disk)])[0]
    engine = lab.engine(load=lambda stored: lab.source.adapters[stored.ref.digest])
    lab.same(answer, lab.run(engine, [lab.ask("hello", on_disk)])[0])


@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_files_are_an_error_and_never_the_bare_backbones_answer(lab, on_disk, tmp_path, damage):
    weights = tmp_path / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    if damage != "gone":
        weights.write_bytes(content[:-40] if damage == "cut" else b"")
    assert isinstance(error_of(lab, lab.engine(), lab.ask("hello", on_disk)), UmbelError)


def test_what_was_read_from_files_does_not_stay_in_memory_beside_the_fused_tensors(lab, on_disk):
    read, load = [], lab.source.load

    def watch(stored):
        adapter = load(stored)
        read.extend(weakref.ref(tensor) for tensor in adapter.weights.tensors.values())
        return adapter

    lab.source.load = watch
    engine = lab.engine()
    lab.run(engine, [lab.ask("hello", on_disk)])
    gc.collect()
    assert engine.bank.residents
    assert read
    assert not any(tensor() is not None for tensor in read)


def test_a_load_never_keeps_the_interpreter_from_the_step_for_long(lab):
    """`make bench-targets`, row e, is what comes of it."""
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        lab.engine()
        assert sys.getswitchinterval() <= 0.001
        sys.setswitchinterval(0.0001)
        lab.engine()
        assert sys.getswitchinterval() < 0.0002  # who wants less gets it
    finally:
        sys.setswitchinterval(before)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux tells them")
def test_a_loader_has_no_team_of_threads_beside_that_of_the_steps(by_kernels, monkeypatch):
    """With it, OpenMP would have more threads than processors, and those of the step would sleep between its calls."""
    lab, found, before = Lab(by_kernels), [], torch.get_num_threads()
    load = lab.source.load

    def counted(stored):
        threads = len(os.listdir("/proc/self/task"))
        (torch.ones(1 << 20) * 2).sum()  # as large as what is checked of an adapter
        found.append(len(os.listdir("/proc/self/task")) - threads)
        return load(stored)

    torch.set_num_threads(2)
    try:
        lab.run(lab.engine(load=counted), [lab.ask("hello", lab.adapter("lora", 1))])
    finally:
        torch.set_num_threads(before)
        lab.close()
    assert found == [0]


def test_a_resident_holds_nothing_of_the_file_that_it_came_from(lab):
    digest = lab.classifier(1)
    adapter = lab.source.adapters[digest]
    for name, tensor in adapter.head.tensors.items():  # a view of all that was read
        file = torch.empty(1 << 16, dtype=tensor.dtype)
        adapter.head.tensors[name] = file[: tensor.numel()].view(tensor.shape).copy_(tensor)
    resident = make_resident(digest, adapter, lab.backbone)
    assert resident.head.tensors
    for name, tensor in resident.head.tensors.items():
        assert torch.equal(tensor, adapter.head.tensors[name])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
