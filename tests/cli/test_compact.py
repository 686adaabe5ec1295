"""Commands that train run without glibc's cache of small blocks, and others are left alone."""

import os
import subprocess
import sys

import pytest

from umbel.cli.compact import NO_CACHE, compact_environ
from umbel.training import allocator

on_glibc = pytest.mark.skipif(sys.platform != "linux", reason="only glibc has that cache")


@on_glibc
@pytest.mark.parametrize("words", [["train", "mood.toml"], ["worker", "--once"], ["runs", "resume", "mood"]])
def test_a_training_is_told_once_and_beside_what_was_set(words):
    environ = compact_environ(words, {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.perturb=7"})
    assert environ == {"A": "b", "GLIBC_TUNABLES": f"glibc.malloc.perturb=7:{NO_CACHE}"}
    assert compact_environ(words, environ) is None


@pytest.mark.parametrize("words", [[], ["serve"], ["runs", "list"], ["train", "--help"], ["pull", "train"]])
def test_other_commands_start_as_they_are(words):
    assert compact_environ(words, {}) is None


@on_glibc
def test_a_training_starts_anew_under_its_own_id_and_with_all_its_words():
    """By the module, with an option of Python's own: the error is the command's, told once."""
    command = [sys.executable, "-X", "importtime", "-m", "umbel.cli", "train", "--nproc", "0", "--name", "a b"]
    environ = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as child:
        told = child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert told.count("error: ") == 1
    assert told.count("umbel.cli.main\n") == 2


def test_the_estimate_asks_for_the_setting_that_the_command_makes():
    assert allocator.NO_CACHE == NO_CACHE
