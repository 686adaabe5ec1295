"""Who keeps threads: only the one that steps, or all of them would sleep between calls."""

import os
import threading

import pytest
import torch

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux tells them")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads():
    return len(os.listdir("/proc/self/task"))


def work():
    (torch.ones(1 << 20) * 2).sum()


def grown(first):
    """By how many threads a new thread's work grows the process, itself not counted."""
    found = []

    def run():
        first()
        before = threads()
        work()
        found.append(threads() - before)

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
    before = threads()
    kernels.let_go()
    assert threads() == before - 1
    work()
    assert threads() == before
