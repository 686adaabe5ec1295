"""Sharded checkpoints: stopped on N processes, gone on with on another number, and the end is the same."""

import json
import shutil

import pytest

from umbel.backbone.loading import checkpoint_views
from umbel.core.errors import Interrupted
from umbel.core.settings import Settings
from umbel.training import Task, tune
from umbel.training.tuning.tune import resume_tuning

EXACT = 1e-10


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Settings.load(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    data = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"so {i} it is", "label": "ab"[i % 2]}) + "\n" for i in range(30)))
    return Task(
        name="own", data=str(data), task="classify", train="all", steps=6, eval_every=2, lr=0.003, batch_size=7,
        validation_fraction=0.2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def never(wide, own, home):
    """Never stopped."""
    return tune(wide, own, settings=home)


def same(never, backbone, losses) -> None:
    mine = checkpoint_views(never.backbone.decoder)
    assert max(float((mine[name] - backbone[name]).abs().max()) for name in mine) < EXACT
    assert losses == pytest.approx(never.trained.losses, abs=EXACT)


def stopped(launch, size, strategy, given, folder) -> None:
    found = launch(size, "own", **given, strategy=strategy, windows=3, folder_of_checkpoints=str(folder))
    assert [rank["losses"] for rank in found] == [None] * size


def test_shards_of_two_processes_are_read_by_four_and_by_one(launch, tiny, wide, home, own, never, tmp_path):
    given = {"folder": str(tiny), "home": str(home.home), "task": own}
    stopped(launch, 2, "fsdp", given, tmp_path / "run")
    (saved,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    assert len(list((saved / "shards").glob("*.distcp"))) == 2
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    found = launch(4, "own", **given, strategy="hsdp=2", resumes=str(tmp_path / "again"))
    same(never, found[0]["backbone"], found[0]["losses"])
    alone = resume_tuning(wide, tmp_path / "run", settings=home)
    same(never, checkpoint_views(alone.backbone.decoder), alone.trained.losses)


def test_a_checkpoint_of_one_process_is_read_by_two(launch, tiny, wide, home, own, never, tmp_path):
    left = iter(["", "", "", "Ctrl-C"])
    with pytest.raises(Interrupted):
        tune(wide, own, settings=home, folder=tmp_path / "run", stop=lambda: next(left) or None)
    given = {"folder": str(tiny), "home": str(home.home), "task": own}
    found = launch(2, "own", **given, strategy="fsdp", resumes=str(tmp_path / "run"))
    same(never, found[0]["backbone"], found[0]["losses"])


def test_shards_are_written_while_training_goes_on_and_count_when_all_are_there(launch, tiny, home, own, tmp_path):
    given = {"folder": str(tiny), "home": str(home.home), "task": own, "into": str(tmp_path / "run")}
    for rank in launch(2, "saves_while_it_trains", **given):
        assert rank["early"] == []
        assert rank["late"] == ["00000001"]  # the second was written, but nobody finished it
        assert rank["moved_on"]
        assert rank["as_then"]
        assert rank["told"] == rank["copied"] > 0  # the plan's memory has what a checkpoint is written from
