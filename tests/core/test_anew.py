"""What a process wants in its environment, and that it starts anew for it once, under its own id."""

import os
import subprocess
import sys

import pytest

from umbel.core.anew import NO_CACHE, SPINS, TUNABLES, compact, spinning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there are glibc and libgomp")

PROGRAM = """
import os
from umbel.core.anew import spinning, start_anew
print("begun as", os.getpid(), flush=True)
start_anew(spinning)
print(os.getpid(), os.environ["GOMP_SPINCOUNT"])
"""


def test_glibc_is_told_once_and_beside_what_was_set():
    environ = compact({"A": "b", TUNABLES: "glibc.malloc.perturb=7"})
    assert environ == {"A": "b", TUNABLES: f"glibc.malloc.perturb=7:{NO_CACHE}"}
    assert compact(environ) is None


def test_threads_wait_as_somebody_has_said():
    assert spinning({"A": "b"}) == {"A": "b", **SPINS}
    assert spinning({"OMP_WAIT_POLICY": "PASSIVE"}) is None
    assert spinning({"GOMP_SPINCOUNT": "5"}) is None


def test_a_process_starts_anew_once_under_its_own_id(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {key: value for key, value in os.environ.items() if key not in SPINS}
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as child:
        told = child.communicate(timeout=60)[0]
    assert told == f"begun as {child.pid}\n" * 2 + f"{child.pid} {SPINS['GOMP_SPINCOUNT']}\n"
