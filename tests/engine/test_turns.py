"""A load beside steps: it works between them, in turns that no step makes long, and gets done."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from tests.engine.conftest import Lab

from umbel.core.courtesy import give_way
from umbel.core.kept import KeptFiles
from umbel.engine import loader
from umbel.engine.ready import ReadyForms
from umbel.engine.turns import LEAST, SHARE, Turns

PATIENCE = 20.0


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def a_step(turns, other, pass_time):
    """One that somebody waits for."""
    with turns.stepping():
        went_on = other.submit(turns.wait)
        waiting(turns)
        assert not went_on.done()
        pass_time()
    went_on.result(PATIENCE)


@pytest.fixture
def other():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def waiting(turns):
    end = time.monotonic() + PATIENCE
    while not turns._waits:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_whoever_waited_for_a_step_gets_a_part_of_its_time_once(other):
    clock = Clock()
    turns = Turns(apart=False, clock=clock)
    a_step(turns, other, partial(clock.pass_by, 0.5))
    assert turns.owed() == SHARE * 0.5
    assert turns.owed() == 0.0


@pytest.mark.parametrize("lengths", [(0.5, 2.0), (2.0, 0.5)])
def test_one_long_step_makes_no_long_turn(other, lengths):
    clock = Clock()
    turns = Turns(apart=False, clock=clock)
    for seconds in lengths:
        a_step(turns, other, partial(clock.pass_by, seconds))
    assert turns.owed() == SHARE * 0.5


def test_beside_short_steps_a_turn_is_long_enough_for_some_work(other):
    clock = Clock()
    turns = Turns(apart=False, clock=clock)
    a_step(turns, other, partial(clock.pass_by, 0.001))
    assert turns.owed() == LEAST


def test_who_did_not_wait_gets_none(other):
    clock = Clock()
    turns = Turns(apart=False, clock=clock)
    other.submit(turns.wait).result(PATIENCE)
    with turns.stepping():
        clock.now += 0.5
    assert turns.owed() == 0.0


def test_a_step_that_fails_lets_the_other_go_on(other):
    turns, waits = Turns(apart=False), []

    def step():
        with turns.stepping():
            waits.append(other.submit(turns.wait))
            waiting(turns)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        step()
    waits[0].result(PATIENCE)


def test_nobody_waits_where_each_has_cores_of_its_own(other):
    turns = Turns(apart=True)
    with turns.stepping():
        other.submit(turns.wait).result(PATIENCE)
    assert turns.owed() == 0.0


@pytest.fixture
def sharing(lab):
    """An engine whose loader shares the cores of its steps."""
    engine = lab.engine()
    loads = engine.scheduler.loader
    loads.turns._apart, loads._shares = False, True
    return engine


def test_a_load_goes_on_between_steps_only_and_is_done_while_others_write(lab: Lab, sharing):
    began, steps, really = [], [], sharing._run

    def step(plan):
        steps.append(plan)
        really(plan)
        steps.pop()

    def slowly(stored):
        for _ in range(20):
            give_way()
            began.append(len(steps))
            time.sleep(0.002)
        return lab.source.load(stored)

    sharing._run, sharing.scheduler.loader._load = step, slowly
    steady = sharing.submit(lab.ask("steady", max_tokens=200))
    sharing.step()
    newcomer = sharing.submit(lab.ask("new", lab.adapter("lora", 1, rank=4), max_tokens=1))
    while not newcomer.done:
        assert sharing.step()
    assert not steady.done, "the load waited for the others to end"
    assert len(began) == 20
    assert sum(began) <= 3, "pieces began while a step ran"  # a step may begin between the asking and the look
    lab.drain(sharing)


def test_what_is_done_in_quiet_gets_a_little_time_between_steps(sharing, other):
    turns = sharing.scheduler.loader.turns
    a_step(turns, other, partial(time.sleep, 0.1))
    began = time.perf_counter()
    assert not sharing.scheduler.loader.take_turn()
    assert loader._LITTLE <= time.perf_counter() - began < SHARE * 0.1


def test_forms_are_kept_while_others_write(lab: Lab, sharing, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_QUIET", 0.001)
    files = KeptFiles(tmp_path / "ready", 1 << 28)
    sharing.scheduler.loader._ready_forms = ReadyForms(files, lab.backbone)
    steady = sharing.submit(lab.ask("steady", max_tokens=240))
    sharing.submit(lab.ask("new", lab.adapter("lora", 1, rank=4), max_tokens=1))
    while not list(files.folder.glob("??/*")):
        assert sharing.step()
    assert not steady.done
    lab.drain(sharing)


def test_no_step_waits_for_a_load_that_waits_for_something_else(lab: Lab, sharing, monkeypatch):
    lab.source.gate.clear()  # a disk, a network
    sharing.submit(lab.ask("steady", max_tokens=30))
    sharing.submit(lab.ask("new", lab.adapter("lora", 1, rank=4)))
    for _ in range(5):
        sharing.step()
        assert sharing.scheduler.loader.turns.owed() == 0.0
    lab.source.gate.set()
    lab.drain(sharing)


def test_memory_of_a_form_is_used_again_once_nothing_holds_it(lab: Lab, tmp_path):
    files = KeptFiles(tmp_path / "ready", 1 << 28)
    digests = [lab.adapter("lora", seed, rank=4) for seed in range(3)]
    engine = lab.engine(ready=files)
    lab.run(engine, [lab.ask("a", digest) for digest in digests])
    engine.close()
    lab.engines.remove(engine)
    forms = lab.engine(ready=files).scheduler.loader._ready_forms
    first, second = forms.read(digests[0]), forms.read(digests[1])
    before = {key: tensor.clone() for key, tensor in first.fused.items()}
    assert not forms._rooms
    place = min(tensor.data_ptr() for tensor in second.fused.values())
    second.fused = None
    assert len(forms._rooms) == 1
    third = forms.read(digests[2])
    assert min(tensor.data_ptr() for tensor in third.fused.values()) == place
    assert all(bool((tensor == before[key]).all()) for key, tensor in first.fused.items())
    third.fused = first.fused = None
    forms.give_back()
    assert not forms._rooms


def test_memory_that_forms_were_read_into_goes_back_in_quiet(lab: Lab, tmp_path, monkeypatch):
    files, digest = KeptFiles(tmp_path / "ready", 1 << 28), lab.adapter("lora", 1, rank=4)
    engine = lab.engine(ready=files)
    lab.run(engine, [lab.ask("a", digest)])
    engine.close()
    lab.engines.remove(engine)
    lab.source.fetched.clear()
    monkeypatch.setattr(loader, "_QUIET", 1.0)
    engine = lab.engine(ready=files)
    given, really = threading.Event(), ReadyForms.give_back
    monkeypatch.setattr(ReadyForms, "give_back", lambda self: (really(self), given.set()))
    lab.run(engine, [lab.ask("a", digest)])
    assert not lab.source.fetched
    assert given.wait(PATIENCE)
    work = engine.scheduler.loader
    work._pool.submit(int).result(PATIENCE)  # nor does the load, once it is over, leave any behind
    assert not work._ready_forms._rooms
