"""Stopping and going on: the same bytes as never having stopped."""

import json
import shutil

import pytest

from umbel.core.errors import Conflict, Interrupted, NotFound
from umbel.training import resume
from umbel.training.observer import Observer


class StopAfter:
    """Asks to stop once so many windows were taken."""

    def __init__(self, windows: int) -> None:
        self.left = windows

    def __call__(self) -> str | None:
        self.left -= 1
        return "Ctrl-C" if self.left < 0 else None


@pytest.fixture
def mates(tasks):
    from dataclasses import replace

    return [replace(task, steps=steps) for task, steps in zip(tasks.values(), (7, 4, 9, 5, 6, 8), strict=True)]


def same_bytes(one, other) -> bool:
    mine, theirs = one.adapter.tensors, other.adapter.tensors
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@pytest.mark.parametrize("windows", [1, 4, 8])
def test_resume_gives_the_same_bytes(mates, train, wide, settings, tmp_path, windows):
    never = train(*mates)
    with pytest.raises(Interrupted, match=r"umbel train --resume run"):
        train(*mates, folder=tmp_path / "run", stop=StopAfter(windows))
    for one, other in zip(never, resume(wide, tmp_path / "run", settings=settings), strict=True):
        assert same_bytes(one, other)
        assert one.losses == other.losses
        assert one.history == other.history
        assert one.tokens == other.tokens


def test_stopping_twice_changes_nothing_either(mates, train, wide, settings, tmp_path):
    never = train(*mates)
    with pytest.raises(Interrupted):
        train(*mates, folder=tmp_path / "run", stop=StopAfter(2))
    with pytest.raises(Interrupted):
        resume(wide, tmp_path / "run", settings=settings, stop=StopAfter(3))
    for one, other in zip(never, resume(wide, tmp_path / "run", settings=settings), strict=True):
        assert same_bytes(one, other)


def test_a_finished_run_can_be_resumed_to_publish_it(mates, train, wide, settings, tmp_path):
    done = train(*mates, folder=tmp_path / "run")
    for one, other in zip(done, resume(wide, tmp_path / "run", settings=settings), strict=True):
        assert same_bytes(one, other)


def test_a_checkpoint_holds_no_pickle_and_old_ones_go(mates, train, tmp_path):
    stop = StopAfter(3)

    class Saver(Observer):
        def stepped(self, trainee, done):
            if trainee.task.name == "speech":
                loops[0].save()

    from umbel.training import loop

    loops = []
    init = loop.Loop.__init__

    def remember(self, *args, **more):
        init(self, *args, **more)
        loops.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "__init__", remember)
        with pytest.raises(Interrupted):
            train(*mates, folder=tmp_path / "run", stop=stop, observer=Saver())
    folders = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert len(folders) == 2
    assert {path.suffix for folder in folders for path in folder.iterdir()} == {".json", ".safetensors"}


def test_a_half_written_checkpoint_is_never_seen(mates, train, wide, settings, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(*mates, folder=tmp_path / "run", stop=StopAfter(2))
    whole = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resume(wide, tmp_path / "run", settings=settings, stop=StopAfter(1))
    assert sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*")) == whole


def test_other_data_are_not_mixed_in(mates, train, wide, settings, tmp_path, write):
    with pytest.raises(Interrupted):
        train(*mates, folder=tmp_path / "run", stop=StopAfter(2))
    write("speech", [{"prompt": "other ->", "completion": " rows"}] * 9)
    with pytest.raises(Conflict) as caught:
        resume(wide, tmp_path / "run", settings=settings)
    assert caught.value.code == "data_changed"


def test_another_backbone_is_not_mixed_in(mates, train, settings, tmp_path):
    from umbel.backbone.loading import load_backbone
    from umbel.backbone.tiny import tiny_backbone

    with pytest.raises(Interrupted):
        train(*mates, folder=tmp_path / "run", stop=StopAfter(2))
    other = load_backbone(tiny_backbone(tmp_path / "other", seed=5), dtype="fp64")
    with pytest.raises(Conflict) as caught:
        resume(other, tmp_path / "run", settings=settings)
    assert caught.value.code == "backbone_changed"


def test_nothing_to_resume_is_told(wide, settings, tmp_path):
    with pytest.raises(NotFound) as caught:
        resume(wide, tmp_path, settings=settings)
    assert caught.value.code == "checkpoint_not_found"


def test_a_failed_mate_stays_failed_after_resume(tasks, train, wide, settings, tmp_path):
    from dataclasses import replace

    bomb = replace(tasks["topic"], name="bomb", lr=1e200, steps=9)
    with pytest.raises(Interrupted):
        train(tasks["speech"], bomb, folder=tmp_path / "run", stop=StopAfter(3))
    found = resume(wide, tmp_path / "run", settings=settings)
    assert found[1].adapter is None
    assert found[1].error.code == "not_finite"
    assert found[0].adapter is not None


def test_resuming_works_from_another_folder(mates, train, wide, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from dataclasses import replace
    from pathlib import Path

    here = [replace(task, data=Path(task.data).name) for task in mates]
    with pytest.raises(Interrupted):
        train(*here, folder=tmp_path / "run", stop=StopAfter(2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert all(each.adapter is not None for each in resume(wide, tmp_path / "run", settings=settings))
    shutil.rmtree(tmp_path / "elsewhere")
