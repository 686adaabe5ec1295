"""Commands that train run without glibc's cache of small blocks, those that answer with threads that spin, and without
a search for garbage until their backbone stands."""

import os
import subprocess
import sys

import pytest

from umbel.cli.starting import environment_of
from umbel.core.anew import SPINS, TUNABLES, compact, spinning


@pytest.mark.parametrize("words", [["train", "mood.toml"], ["worker", "--once"], ["runs", "resume", "mood"]])
def test_a_training_is_compact(words):
    assert environment_of(words) is compact


@pytest.mark.parametrize("words", [["serve", "--port", "1"], ["run", "mood"], ["eval"], ["compare"], ["bench"]])
def test_threads_of_what_answers_spin(words):
    assert environment_of(words) is spinning


@pytest.mark.parametrize(
    "words", [[], ["runs", "list"], ["train", "--help"], ["serve", "-h"], ["pull", "train"], ["adapters", "serve"]]
)
def test_other_commands_start_as_they_are(words):
    assert environment_of(words) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only there are glibc and libgomp")
@pytest.mark.parametrize("words", [["train", "--nproc", "0", "--name", "a b"], ["run", "--no-such-flag", "a b"]])
def test_a_command_starts_anew_under_its_own_id_and_with_all_its_words(words):
    """By the module, with an option of Python's own: the error is the command's, told once."""
    command = [sys.executable, "-X", "importtime", "-m", "umbel.cli", *words]
    environ = {key: value for key, value in os.environ.items() if key not in (TUNABLES, *SPINS)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as child:
        told = child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert told.count("error: ") == 1
    assert told.count("umbel.cli.main\n") == 2


SEARCHED = """
import gc
import sys

searched = []
gc.callbacks.append(lambda phase, info: searched.append(info["generation"]))

from umbel.cli.main import main
from umbel.cli.starting import start

usual = gc.get_threshold()
before = len(searched)
start(sys.argv[1:])
from umbel.cli import serve

load = serve.load
serve.load = lambda *given: (load(*given), print("searches", len(searched) - before))[0]
code = main(sys.argv[1:])
print("kept", gc.get_freeze_count() > 100_000, gc.get_threshold() == usual)
sys.exit(code)
"""


def test_nothing_is_searched_for_garbage_until_the_backbone_stands_and_that_never(stocked):
    command = [sys.executable, "-c", SEARCHED, "bench", "--requests", "1", "--prompt-tokens", "3", "--new-tokens", "2"]
    environ = {**os.environ, **SPINS}
    found = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("searches 0", "kept True True")
