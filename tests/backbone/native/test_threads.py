"""Who keeps threads: only the one that steps, or all of them would sleep between calls; and where they run."""

import gc
import os
import threading
import time

import pytest
import torch

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux tells them")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gc.collect()
    settled()  # those of engines that others left behind end meanwhile
    yield
    torch.set_num_threads(before)


def tasks():
    return set(os.listdir("/proc/self/task"))


def threads():
    return len(tasks())


def settled():
    """How many there are once they stay as many."""
    now, last = threads(), 0
    while now != last:
        time.sleep(0.1)
        now, last = threads(), now
    return now


def becomes(count):
    """A thread that ends is listed a little longer."""
    until = time.monotonic() + 10
    while threads() != count and time.monotonic() < until:
        time.sleep(0.01)
    return threads() == count


def work():
    (torch.ones(1 << 20) * 2).sum()


def grown(first):
    """By how many threads a new thread's work grows the process, itself not counted."""
    found = []

    def run():
        first()
        before = tasks()
        work()
        found.append(len(tasks() - before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_is_alone_gets_no_team(kernels):
    assert grown(lambda: None) == 1
    assert grown(kernels.alone) == 0
    work()
    assert torch.get_num_threads() == 2  # of all others


def test_a_team_goes_and_comes_back(kernels):
    work()
    kernels.let_go()
    alone = settled()
    work()
    assert becomes(alone + 1)
    kernels.let_go()
    assert becomes(alone)
    work()
    assert becomes(alone + 1)


def cores_of_helpers(first):
    """Of a new thread's helpers, and of itself, once ``first`` was called there."""
    found = {}

    def run():
        before = set(os.listdir("/proc/self/task"))
        work()
        first()
        helpers = {int(one) for one in os.listdir("/proc/self/task")} - {int(one) for one in before}
        found["helpers"] = [os.sched_getaffinity(one) for one in helpers]
        found["own"] = os.sched_getaffinity(0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found["helpers"], found["own"]


def test_helpers_that_settle_have_a_core_each_and_the_others_go_where_they_like(kernels):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core")
    torch.set_num_threads(len(cores))
    helpers, own = cores_of_helpers(kernels.settle)
    assert sorted(map(tuple, helpers)) == [(core,) for core in cores[1:]]
    assert own == os.sched_getaffinity(0) == set(cores)
    assert cores_of_helpers(kernels.alone)[1] == set(cores[1:])


def test_nobody_settles_where_cores_and_threads_are_not_as_many(kernels):
    cores = os.sched_getaffinity(0)
    torch.set_num_threads(len(cores) + 1)
    helpers, own = cores_of_helpers(kernels.settle)
    assert helpers
    assert all(found == cores for found in (*helpers, own, cores_of_helpers(kernels.alone)[1]))
