"""Which rows train, validate and test."""

from dataclasses import replace
from pathlib import Path

import pytest

from umbel.core.errors import DataError, NotFound
from umbel.training.data.rows import text_of
from umbel.training.data.source import load_splits, look_at
from umbel.training.taskfile import task_of


@pytest.fixture
def single(write):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(300)]
    return task_of({"name": "x", "data": write("all", rows), "task": "classify"})


def texts(rows):
    return {text_of(row) for row in rows}


def test_a_single_file_is_split_into_three_that_share_no_text(single, settings):
    splits = load_splits(single, settings)
    parts = [splits.train, splits.validation, splits.test]
    assert sum(map(len, parts)) == 300
    assert not texts(splits.train) & (texts(splits.validation) | texts(splits.test))
    assert all(10 <= len(part) <= 60 for part in parts[1:])
    assert splits.leaks == 0


def test_copies_and_near_copies_never_straddle(write, settings):
    rows = [
        {"text": f"{'RT @me ' * (copy == 1)}Text {i}{'!' * copy}", "label": "x"} for i in range(60) for copy in range(3)
    ]
    splits = load_splits(task_of({"name": "x", "data": write("all", rows), "task": "classify"}), settings)
    numbers = [
        {text.split()[-1].strip("!") for text in texts(part)} for part in (splits.train, splits.validation, splits.test)
    ]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    assert not numbers[1] & numbers[2]


def test_a_row_keeps_its_split_when_others_come(single, write, settings):
    before = load_splits(single, settings)
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in reversed(range(500))]
    after = load_splits(replace(single, data=write("more", rows)), settings)
    for split in ("train", "validation", "test"):
        assert texts(getattr(before, split)) <= texts(getattr(after, split))


def test_the_first_rows_of_a_pulled_dataset_split_as_any_rows_do(write, settings):
    """Pulled files are sorted by a hash of the text; by the same hash all of these would be held out, or none."""
    from umbel.training.data.splits import text_key, unit

    rows = sorted(
        ({"text": f"text {i}", "label": "ab"[i % 2]} for i in range(3000)), key=lambda row: unit(text_key(row["text"]))
    )
    splits = load_splits(task_of({"name": "x", "data": write("head", rows[:300]), "task": "classify"}), settings)
    assert all(10 <= len(part) <= 60 for part in (splits.validation, splits.test))


def test_a_folder_brings_its_own_splits(write, settings, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i}", "label": "a"} for i in range(5)]
        (folder / f"{split}.jsonl").write_bytes(Path(write(split, rows)).read_bytes())
    splits = load_splits(task_of({"name": "x", "data": str(folder), "task": "classify"}), settings)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [5, 5, 5]
    assert texts(splits.test) == {f"test {i}" for i in range(5)}


def test_a_file_of_its_own_leaves_train_whole(single, write, settings):
    test = write("test", [{"text": "text 3", "label": "b"}, {"text": "new", "label": "a"}])
    splits = load_splits(replace(single, test=test, validation_fraction=0.0), settings)
    assert len(splits.train) == 300
    assert not splits.validation
    assert len(splits.test) == 2
    assert splits.leaks == 1


def test_a_limit_is_the_first_training_rows(single, settings):
    whole, few = load_splits(single, settings), load_splits(replace(single, limit=7), settings)
    assert [text_of(row) for row in few.train] == [text_of(row) for row in whole.train[:7]]
    assert texts(few.test) == texts(whole.test)


def test_splits_of_different_forms_are_refused(write, settings):
    chat = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    data, test = write("train", [{"prompt": f"{i}", "completion": "b"} for i in range(9)]), write("test", chat)
    with pytest.raises(DataError) as caught:
        load_splits(task_of({"name": "x", "data": data, "test": test, "task": "generate"}), settings)
    assert caught.value.code == "mixed_forms"


def test_an_unknown_dataset_is_told_with_the_command_that_brings_it(settings):
    with pytest.raises(NotFound) as caught:
        load_splits(task_of({"name": "x", "data": "tweets", "task": "classify"}), settings)
    assert caught.value.code == "dataset_not_found"
    assert "umbel pull dataset tweets" in caught.value.hint


def test_a_pulled_dataset_has_its_own_digest_and_labels(settings, tmp_path, write):
    import json

    from umbel.core.digests import digest_file, digest_json
    from umbel.training.data.installed import DatasetInfo

    folder = settings.datasets / "moods"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": split, "label": "b"}) + "\n")
    files = {split: digest_file(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    info = DatasetInfo(
        source="wheel:x", sha256="sha256:" + "0" * 64, licence="MIT", output_head="classify", metric="macro_f1",
        labels=("b", "a"), rows={"train": 1}, files=files, digest=digest_json(files), notes=(),
    )  # fmt: skip
    info.write(folder)
    splits = load_splits(task_of({"name": "x", "data": "moods", "task": "classify"}), settings)
    assert splits.digest == info.digest
    assert (splits.labels, splits.metric, splits.licence) == (("b", "a"), "macro_f1", "MIT")


def test_a_look_at_the_first_rows_tells_a_wrong_path_or_column_before_a_backbone_is_loaded(single, settings, tmp_path):
    look_at(single, settings)
    with pytest.raises(NotFound, match="no file or folder"):
        look_at(replace(single, data=str(tmp_path / "nowhere.csv")), settings)
    with pytest.raises(DataError, match="line 1"):
        look_at(replace(single, label_column="category"), settings)
