import fcntl
import os
import subprocess
import sys

import pytest

from umbel.core.folders import building, folders_in, only_one, size_of


def test_a_finished_folder_holds_what_was_put_into_it(tmp_path):
    with building(tmp_path / "home" / "x") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"12345")
    assert (tmp_path / "home" / "x" / "deep" / "file").read_bytes() == b"12345"
    assert [path.name for path in folders_in(tmp_path / "home")] == ["x"]
    assert size_of(tmp_path / "home" / "x") == 5


def test_an_exception_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with building(tmp_path / "x") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_built_over(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("first")
    with pytest.raises(FileExistsError), building(tmp_path / "x"):
        pass
    assert (tmp_path / "x" / "file").read_text() == "first"


def test_a_killed_builder_leaves_no_name_and_the_next_one_sweeps_up(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from umbel.core.folders import building
with building(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert killed.returncode == -9
    assert folders_in(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1  # the leftover, under a hidden name
    with building(tmp_path / "x") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_one_holds_a_name_at_a_time(tmp_path):
    def free() -> bool:
        (lock,) = tmp_path.glob(".x*")
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with only_one(tmp_path / "x"):
        assert not free()
        with only_one(tmp_path / "y"):  # another name waits for nobody
            pass
    assert free()


def test_files_are_readable_by_others_whatever_made_the_folder(tmp_path):
    with building(tmp_path / "x"):
        pass
    assert os.stat(tmp_path / "x").st_mode & 0o777 == 0o755
