"""A training that is killed at any moment and then resumed ends in the very weights of one that never was."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from umbel.core.settings import Settings
from umbel.registry.registry import Registry

PHASES = ("step", "save", "evaluation", "publish")
MOODS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "glad" if i % 2 else "sad"} for i in range(80)]


class Children:
    """The program ``killing.py``, which is asked for one job after the other."""

    def __init__(self) -> None:
        self.program = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killing.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, home: Path, *words: str, kill: tuple[str, int] | None = None) -> dict[str, Any]:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps([{"home": str(home), "words": words, "kill": kill}]) + "\n")
        self.program.stdin.flush()
        found: dict[str, Any] = json.loads(self.program.stdout.readline())
        return found

    def close(self) -> None:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.close()
        self.program.wait(timeout=30)
        self.program.stdout.close()


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    started = Children()
    yield started
    started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory, filled) -> Path:
    """A home to copy, and a task with everything that has a state: dropout, a head with layers, accumulation."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(filled, folder / "home")
    (folder / "joy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MOODS))
    (folder / "joy.toml").write_text(
        'name = "joy"\ndata = "joy.jsonl"\ntask = "classify"\nrank = 2\nsteps = 8\neval_every = 2\nbatch_size = 8\n'
        "micro_batch = 3\ndropout = 0.1\nhead_depth = 1\nhead_dropout = 0.1\n"
    )
    return folder


def weights_of(home: Path) -> str:
    """``weights_sha256`` of the only version there is."""
    settings = Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))
    with Registry.open(settings) as registry:
        (version,) = registry.versions.list("joy").items
        return str(version.weights_sha256)


@pytest.fixture(scope="module")
def never(files, children) -> tuple[str, dict[str, int]]:
    """The weights of a run that nothing happened to, and how many calls each phase of it has."""
    home = files / "never"
    shutil.copytree(files / "home", home)
    found = children.run(home, *train(files))
    assert found["status"] == 0, found["said"]
    return weights_of(home), found["calls"]


def train(files: Path) -> tuple[str, ...]:
    return ("train", str(files / "joy.toml"), "--save-every", "0", "--quiet")


def moments(calls: dict[str, int], each: int, seed: int, phases: tuple[str, ...] = PHASES) -> list[tuple[str, int]]:
    """Random places in each phase; not the last tenth, as runs differ by a call or two."""
    rng = random.Random(seed)
    return [(phase, rng.randint(1, int(0.9 * calls[phase]))) for phase in phases for _ in range(each)]


def kill_and_resume(files: Path, children: Children, moment: tuple[str, int], home: Path) -> str:
    shutil.copytree(files / "home", home)
    killed = children.run(home, *train(files), kill=moment)
    assert killed["status"] == -9, (moment, killed)
    resumed = children.run(home, "runs", "resume", "joy", "--quiet")
    assert resumed["status"] == 0, (moment, resumed["said"])
    return weights_of(home)


def test_killed_in_a_save_or_a_publish_it_ends_in_the_same_weights(files, children, never, tmp_path):
    weights, calls = never
    assert all(calls[phase] > 50 for phase in PHASES)
    for number, moment in enumerate(moments(calls, 1, seed=7, phases=("save", "publish"))):
        assert kill_and_resume(files, children, moment, tmp_path / str(number)) == weights, moment


@pytest.mark.soak
def test_killed_at_twenty_random_moments_it_ends_in_the_same_weights(files, children, never, tmp_path):
    weights, calls = never
    for number, moment in enumerate(moments(calls, 5, seed=0)):
        assert kill_and_resume(files, children, moment, tmp_path / str(number)) == weights, moment


def test_killed_twice_and_taken_over_by_a_worker_it_ends_in_the_same_weights(files, children, never, tmp_path):
    weights, calls = never
    home = tmp_path / "home"
    shutil.copytree(files / "home", home)
    assert children.run(home, *train(files), kill=("step", calls["step"] // 3))["status"] == -9
    assert children.run(home, "runs", "resume", "joy", "--quiet", kill=("step", calls["step"] // 4))["status"] == -9
    (run,) = runs_of(home, silent_for=61_000)
    assert run.lease_owner is not None
    taken = children.run(home, "worker", "--once", "--quiet")
    assert taken["status"] == 0, taken["said"]
    assert weights_of(home) == weights, taken
    (run,) = runs_of(home)
    assert run.status == "succeeded"
    assert run.attempt == 3


def runs_of(home: Path, *, silent_for: int | None = None) -> list[Any]:
    """Every run of the home; ``silent_for`` sets their last sign of life back by so many milliseconds."""
    settings = Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))
    with Registry.open(settings) as registry:
        if silent_for is not None:
            from sqlalchemy import update

            from umbel.registry.models import RunRow

            with registry.runs.database.write() as session:
                session.execute(update(RunRow).values(heartbeat_at=RunRow.heartbeat_at - silent_for))
        return list(registry.runs.list(name="joy").items)
