"""The most that a process has held: its own, not that of the process that started it."""

import subprocess
import sys

from umbel.core.held import most_held

GROWN = 300_000_000
ASK = "from umbel.core.held import most_held; print(most_held())"


def test_it_grows_with_what_is_held_and_stays_when_that_is_freed():
    before = most_held()
    block = bytearray(b"1") * GROWN
    del block
    assert most_held() >= before
    assert most_held() > GROWN


def test_a_child_of_a_large_process_tells_its_own():
    block = bytearray(b"1") * GROWN
    assert most_held() > GROWN
    ran = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < len(block)
