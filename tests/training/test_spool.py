"""Rows that lie in a file train as rows in memory do, to the last bit, and take no memory."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from umbel.core.errors import DataError, Interrupted
from umbel.training import fit, resume
from umbel.training.data.encode import Example
from umbel.training.data.source import load_splits
from umbel.training.data.spool import Spool, spool_examples, spool_rows
from umbel.training.prepared import prepare


@pytest.fixture
def filed(settings):
    """Settings under which every file is a large one."""
    return replace(settings, spool_bytes=0)


def alike(one: Example, other: Example) -> bool:
    same = one.spoken is None and other.spoken is None
    return (
        (one.index, one.target, one.words, one.weight) == (other.index, other.target, other.words, other.weight)
        and one.ids.dtype == other.ids.dtype
        and one.ids.tobytes() == other.ids.tobytes()
        and (same or one.spoken.tobytes() == other.spoken.tobytes())
        and len(one.mates) == len(other.mates)
        and all(map(alike, one.mates, other.mates))
    )


def test_every_form_is_split_and_encoded_as_in_memory(tasks, wide, settings, filed, monkeypatch):
    monkeypatch.setattr("umbel.training.data.spooled._AT_ONCE", 4)  # borders between what is encoded together
    for task in tasks.values():
        held, laid = (prepare(task, wide, each) for each in (settings, filed))
        assert isinstance(laid.splits.train, Spool)
        assert isinstance(laid.train.examples, Spool)
        for split in ("train", "validation", "test"):
            assert list(getattr(laid.splits, split)) == list(getattr(held.splits, split)), task.name
        assert len(laid.train.examples) == len(held.train.examples)
        assert all(map(alike, laid.train.examples, held.train.examples)), task.name
        assert (laid.train.truncated, laid.train.left_out) == (held.train.truncated, held.train.left_out)
        assert laid.contract == held.contract
        assert laid.splits.digest == held.splits.digest


def test_trainings_of_both_end_in_the_same_bytes_also_if_stopped_between(tasks, wide, settings, filed, tmp_path):
    some = [replace(task, steps=5) for task in tasks.values()]
    left = iter([None, None, "Ctrl-C"])
    held = fit(wide, some, settings=settings)
    with pytest.raises(Interrupted):
        fit(wide, some, settings=filed, folder=tmp_path / "run", stop=lambda: next(left))
    for one, other in zip(held, resume(wide, tmp_path / "run", settings=filed), strict=True):
        assert one.losses == other.losses
        assert one.history == other.history
        assert all(other.adapter.tensors[name].equal(tensor) for name, tensor in one.adapter.tensors.items())


def test_a_wrong_row_is_told_with_its_line(task, filed):
    rows = [{"text": f"{i}", "label": "a"} for i in range(5)] + [{"text": "x", "label": ["a"]}]
    with pytest.raises(DataError, match="line 6 has a list where line 1 has one label"):
        load_splits(task(rows, name="bad", task="classify"), filed)


def test_it_is_a_sequence_and_its_parts_are_sequences(tasks, wide, settings, tmp_path_factory):
    prepared = prepare(tasks["mood"], wide, settings)
    rows, examples = list(prepared.splits.train), list(prepared.train.examples)
    scratch = tmp_path_factory.mktemp("scratch")
    laid = spool_rows(rows, scratch)
    assert (laid[0], laid[-1], len(laid), list(laid[3:9:2])) == (rows[0], rows[-1], len(rows), rows[3:9:2])
    assert list(laid.choose([4, 2])[:1]) == [rows[4]]
    assert not laid[:0]
    with pytest.raises(IndexError):
        laid[len(rows)]
    assert all(map(alike, spool_examples(examples, scratch), examples))
    assert not list(scratch.iterdir())  # nameless: nothing is left behind, however a process ends


SCRIPT = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
from umbel.backbone.loading import load_backbone
from umbel.core.settings import Settings
from umbel.training import Task, fit
from umbel.training.observer import Observer

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

class Ears(Observer):
    def planned(self, plan):
        self.held = resident()

folder, home, data, spool, warm = json.loads(sys.argv[1])
backbone, settings, ears = load_backbone(Path(folder)), replace(Settings.load(Path(home)), spool_bytes=spool), Ears()
more = {"task": "classify", "steps": 1, "batch_size": 2, "options": {"rank": 1}, "validation_limit": 2, "test_limit": 2}
fit(backbone, [Task(name="warm", data=warm, **more)], settings=settings)
before = resident()
found = fit(backbone, [Task(name="large", data=data, **more)], settings=settings, observer=ears)
print(json.dumps([ears.held - before, len(found[0].prepared.train.examples)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells there what a process holds")
@pytest.mark.parametrize("count", [4_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_memory_hardly_grows_with_the_rows(count, tiny, tmp_path):
    data, warm = tmp_path / "large.jsonl", tmp_path / "warm.jsonl"
    # texts of more than 256 bytes, which the tokenizer does not remember
    rows = (json.dumps({"text": f"row {i} " + "of words " * 30, "label": "ab"[i % 2]}) + "\n" for i in range(count))
    with data.open("w") as file:
        file.writelines(rows)
    with data.open() as file:
        warm.write_text("".join(line for _, line in zip(range(500), file, strict=False)))

    def grown(spool: int) -> int:
        order = json.dumps([str(tiny), str(tmp_path / "home"), str(data), spool, str(warm)])
        ran = subprocess.run([sys.executable, "-c", SCRIPT, order], check=True, capture_output=True, text=True)
        more, there = json.loads(ran.stdout.splitlines()[-1])
        assert there > 0.75 * count
        return more

    # the allocator's holes are some megabytes, more in one process than in another; in memory a row is 20,000 bytes
    laid = min(grown(spool=0) for _ in range(3 if count == 4_000 else 1))
    assert laid < 1000 * count + 25e6, laid
    if count == 4_000:
        assert grown(spool=1 << 40) > laid + 8000 * count
