"""Commands that answer start with threads that spin, unless somebody has said how threads wait."""

import os
import subprocess
import sys

import pytest

from umbel.cli.compact import answers
from umbel.core.spinning import VARIABLES, spinning_environ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there is libgomp")


def test_what_somebody_has_set_stays():
    assert spinning_environ({"A": "b"}) == {"A": "b", **VARIABLES}
    assert spinning_environ({"OMP_WAIT_POLICY": "PASSIVE"}) is None
    assert spinning_environ({"GOMP_SPINCOUNT": "5"}) is None


def test_only_commands_that_step_an_engine_ask_for_it():
    assert answers(["serve", "--port", "1"])
    assert not any(answers(words) for words in ([], ["serve", "--help"], ["train", "serve"], ["adapters", "list"]))


@pytest.mark.parametrize(("given", "starts"), [({}, 2), ({"OMP_WAIT_POLICY": "PASSIVE"}, 1)])
def test_an_answering_command_starts_anew_once_under_its_own_id(given, starts):
    command = [sys.executable, "-X", "importtime", "-m", "umbel.cli", "run", "--no-such-flag"]
    environ = {key: value for key, value in os.environ.items() if key not in VARIABLES} | given
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as child:
        told = child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert told.count("umbel.cli.main\n") == starts
    assert told.count("error: ") == 1
