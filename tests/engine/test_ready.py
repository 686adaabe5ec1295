"""Kept forms of adapters: read back they answer to the bit as loaded ones do, and any doubt means loading anew."""

import json
import logging
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.engine.conftest import Lab

from umbel.core.kept import KeptFiles
from umbel.engine import loader, ready
from umbel.engine.ready import ReadyForms
from umbel.engine.resident import make_resident
from umbel.engine.slots import Bank

LIMIT = 1 << 28


@pytest.fixture
def files(tmp_path):
    return KeptFiles(tmp_path / "ready", LIMIT)


def served(lab, files, requests):
    """What an engine of its own answers, and what it had to fetch; its loader is done with keeping."""
    lab.source.fetched.clear()
    engine = lab.engine(ready=files)
    answers = lab.run(engine, requests)
    engine.close()
    lab.engines.remove(engine)
    return answers, list(lab.source.fetched)


def test_every_method_and_output_head_answers_the_same_without_a_fetch(any_lab, files):
    zoo = [digest for digest in any_lab.zoo() if digest is not None]
    judges = [any_lab.classifier(20), any_lab.classifier(21, "none"), any_lab.classifier(22, "prefix", length=3)]
    requests = [any_lab.ask("a text", digest) for digest in zoo] + [any_lab.pool("a text", digest) for digest in judges]
    first, fetched = served(any_lab, files, requests)
    assert sorted(fetched) == sorted(zoo + judges)
    again, fetched = served(any_lab, files, requests)
    assert fetched == []
    for one, other in zip(first[: len(zoo)], again, strict=False):
        any_lab.same(one, other)
    for one, other in zip(first[len(zoo) :], again[len(zoo) :], strict=True):
        assert torch.allclose(one.logits, other.logits, rtol=0, atol=any_lab.tolerance)


def test_what_is_read_is_what_was_made(lab, files):
    for digest in [*filter(None, lab.zoo()), lab.classifier(9)]:
        made = make_resident(digest, lab.source.adapters[digest], lab.backbone)
        forms = ReadyForms(files, lab.backbone)
        forms.write(made, made.fused)
        read = forms.read(digest)
        for key, tensor in made.fused.items():
            assert read.fused[key].dtype == tensor.dtype
            assert torch.equal(read.fused[key], tensor)
        assert (read.signature, read.nbytes, read.past_length, read.num_virtual) == (
            made.signature, made.nbytes, made.past_length, made.num_virtual
        )  # fmt: skip
        assert (read.adapter.name, read.adapter.config, read.adapter.contract) == (
            made.adapter.name, made.adapter.config, made.adapter.contract
        )  # fmt: skip
        Bank(1 << 26).insert(read)


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: data[:99] + b"x" + data[100:], lambda data: b""])
def test_a_torn_file_is_loaded_anew_and_kept_again(lab, files, harm):
    digest = lab.adapter("lora", 1, rank=4)
    first, _ = served(lab, files, [lab.ask("a", digest)])
    (path,) = files.folder.glob("??/*")
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    again, fetched = served(lab, files, [lab.ask("a", digest)])
    assert fetched == [digest]
    assert again[0].tokens == first[0].tokens
    assert path.read_bytes() == whole


def test_a_form_under_another_digest_answers_for_nobody(lab, files):
    one, other = lab.adapter("lora", 1, rank=4), lab.adapter("lora", 2, rank=4)
    expected, _ = served(lab, files, [lab.ask("a", one), lab.ask("a", other)])
    forms = ReadyForms(files, lab.backbone)
    mine, theirs = (files.path(forms._key(digest)) for digest in (one, other))
    theirs.write_bytes(mine.read_bytes())
    found, fetched = served(lab, files, [lab.ask("a", one), lab.ask("a", other)])
    assert fetched == [other]
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]


@pytest.mark.parametrize("what", ["fingerprint", "quantised", "code"])
def test_forms_of_another_backbone_or_by_other_code_are_not_found(lab, files, monkeypatch, what):
    digest = lab.adapter("lora", 1, rank=4)
    made = make_resident(digest, lab.source.adapters[digest], lab.backbone)
    ReadyForms(files, lab.backbone).write(made, made.fused)
    assert ReadyForms(files, lab.backbone).read(digest) is not None
    backbone = lab.backbone
    if what == "code":
        monkeypatch.setattr(ready, "_code", lambda: "other")
    elif what == "quantised":
        backbone = replace(backbone, quantised="int8")
    else:
        backbone = replace(backbone, identity=replace(backbone.identity, fingerprint="sha256:" + "1" * 64))
    assert ReadyForms(files, backbone).read(digest) is None


def test_the_code_is_all_that_a_form_hangs_on(tmp_path, monkeypatch):
    import umbel.adapters

    before = ready._code.__wrapped__()
    copy = tmp_path / "adapters"
    copy.mkdir()
    (copy / "__init__.py").write_text("")
    monkeypatch.setattr(umbel.adapters, "__file__", str(copy / "__init__.py"))
    assert ready._code.__wrapped__() != before


def test_a_form_that_cannot_be_understood_is_told_and_loaded_anew(lab, files, caplog):
    digest = lab.adapter("lora", 1, rank=4)
    forms = ReadyForms(files, lab.backbone)
    header = json.dumps({"digest": digest}).encode()
    files.put(forms._key(digest), len(header).to_bytes(8, "little"), header)
    with caplog.at_level(logging.ERROR):
        _, fetched = served(lab, files, [lab.ask("a", digest)])
    assert fetched == [digest]
    assert "could not be read" in caplog.text


def test_nothing_is_kept_where_nothing_may_be_or_can_be(lab, tmp_path):
    digest = lab.adapter("lora", 1, rank=4)
    (tmp_path / "full").write_text("a file where the folder should be")
    for files in (KeptFiles(tmp_path / "none", 0), KeptFiles(tmp_path / "full", LIMIT)):
        for _ in range(2):
            _, fetched = served(lab, files, [lab.ask("a", digest)])
            assert fetched == [digest]


def test_an_adapter_that_is_refused_is_not_kept(lab, files):
    digest = lab.adapter("lora", 1, rank=4, fingerprint="sha256:" + "2" * 64)
    with pytest.raises(Exception, match="bound to backbone"):
        served(lab, files, [lab.ask("a", digest)])
    assert not list(files.folder.glob("??/*"))


def test_forms_are_written_when_nobody_asks_and_held_by_few(lab, files, monkeypatch):
    written = []
    monkeypatch.setattr(loader, "_QUIET", 60.0)
    really = ReadyForms.write
    monkeypatch.setattr(ReadyForms, "write", lambda self, *given: written.append(1) or really(self, *given))
    engine = lab.engine(ready=files)
    digests = [lab.adapter("lora", seed, rank=2) for seed in range(7)]
    for digest in digests:
        lab.run(engine, [lab.ask("a", digest, max_tokens=1)])
    assert len(written) <= 3
    engine.close()
    lab.engines.remove(engine)
    assert len(written) == len(digests)


def test_a_step_waits_for_a_kept_form_and_for_nothing_else(lab, files, monkeypatch):
    kept, cold = lab.adapter("lora", 1, rank=4), lab.adapter("lora", 2, rank=4)
    served(lab, files, [lab.ask("a", kept)])
    engine = lab.engine(ready=files)
    loads = engine.scheduler.loader
    loads._shares = True
    monkeypatch.setattr(loads, "await_kept", partial(loads.await_kept, 20.0))  # a busy machine reads slowly
    lab.source.gate.clear()
    handles = [engine.submit(lab.ask("a", kept))]
    engine.step()
    assert [row.adapter for row in engine.scheduler.running.rows] == [kept]  # in the very step
    handles.append(engine.submit(lab.ask("a", cold)))
    assert not loads.await_kept()
    engine.step()
    assert not loads.await_kept()  # it is loaded from its files: nobody waits
    lab.source.gate.set()
    lab.drain(engine)
    assert [len(handle.result().tokens) for handle in handles] == [10, 10]


def test_a_kept_form_that_takes_too_long_is_awaited_once(lab, files, monkeypatch):
    kept = lab.adapter("lora", 1, rank=4)
    served(lab, files, [lab.ask("a", kept)])
    engine = lab.engine(ready=files)
    loads, slow = engine.scheduler.loader, threading.Event()
    loads._shares = True
    really = loads._kept
    monkeypatch.setattr(loads, "_kept", lambda digest: slow.wait(30) and really(digest))
    handle = engine.submit(lab.ask("a", kept))
    engine.step()
    assert not engine.scheduler.running.rows
    began = time.perf_counter()
    assert not loads.await_kept(30)
    assert time.perf_counter() - began < 5
    slow.set()
    lab.drain(engine)
    assert len(handle.result().tokens) == 10


@pytest.mark.parametrize("keeps", [True, False])
def test_what_loading_freed_is_given_back_in_quiet(lab, files, monkeypatch, keeps):
    given = threading.Event()
    monkeypatch.setattr(loader, "give_back_freed", given.set)
    monkeypatch.setattr(loader, "_QUIET", 0.01)
    engine = lab.engine(ready=files if keeps else None)
    assert not given.is_set()
    lab.run(engine, [lab.ask("a", lab.adapter("lora", 1, rank=4))])
    assert given.wait(20)


def test_no_step_waits_for_what_is_warmed_by_hand(lab, files, monkeypatch):
    kept = lab.adapter("lora", 1, rank=4)
    served(lab, files, [lab.ask("a", kept)])
    engine, awaited = lab.engine(ready=files), []
    loads = engine.scheduler.loader
    monkeypatch.setattr(loads, "await_kept", lambda: awaited.append(1))
    engine.submit(lab.ask("bare"))
    loads.start(kept)
    engine.step()
    assert not awaited
    engine.submit(lab.ask("a", kept))
    engine.step()
    assert awaited or kept in engine.bank  # unless it was there by then
    lab.drain(engine)


def test_an_engine_with_kernels_moves_no_slots(by_torch, by_kernels):
    for backbone, anywhere in ((by_torch, False), (by_kernels, True)):
        lab = Lab(backbone)
        engine = lab.engine()
        lab.run(engine, [lab.ask("a", lab.adapter("lora", 1, rank=4))])
        assert [stack.reads_anywhere for stack in engine.bank.stacks.values()] == [anywhere]
        lab.close()
