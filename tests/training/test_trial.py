"""`umbel data check --task` finds what would spoil a training, each by itself."""

import json

import pytest

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import DataError
from umbel.core.settings import Settings
from umbel.training.data.trial import try_data
from umbel.training.task import Task


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny") / "tiny"))


@pytest.fixture
def check(backbone, tmp_path):
    def run(train, *, validation=None, test=None, task="classify", **more):
        for name, rows in {"train": train, "validation": validation, "test": test}.items():
            if rows:
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = Task(name="check", data=str(tmp_path), task=task, **more)
        return try_data(asked, backbone, Settings.load(tmp_path / "home"))

    return run


def rows(count, label="ab", text="row number {}"):
    return [{"text": text.format(i), "label": label[i % len(label)]} for i in range(count)]


def told(report):
    return {(finding.level, finding.what) for finding in report.findings}


def test_clean_data_are_trainable_and_counted(check):
    report = check(rows(200), test=rows(120, text="held out {}"))
    assert report.trainable
    assert report.splits["train"].rows + report.splits["validation"].rows == 200
    assert report.splits["test"].longest == len("held out 119")
    assert report.splits["test"].balance == {"a": 60, "b": 60}
    assert report.leaks == {"validation": 0, "test": 0}


def test_copies_leaks_and_contradictions_are_counted(check):
    train = [*rows(200), {"text": "Row number 4!", "label": "a"}, {"text": "row number 6", "label": "b"}]
    held_out = [*rows(100, text="held out {}"), {"text": "ROW number 8", "label": "a"}]
    report = check(train, validation=rows(20, text="looked at {}"), test=held_out)
    assert report.splits["train"].copies == 1
    assert report.contradictions == 1
    assert report.leaks == {"validation": 0, "test": 1}


def test_one_label_only_cannot_train(check):
    report = check(rows(50, label="a"), labels=("a", "b"))
    assert not report.trainable
    assert ("error", "no training row has the label 'b'.") in told(report)


def test_a_rare_and_skewed_label_is_told(check):
    report = check([*rows(300, label="a"), *rows(3, label="b", text="rare {}")])
    assert any("'b' has" in what for _, what in told(report))
    assert any("times the rarest" in what for _, what in told(report))


def test_rows_that_are_cut_or_do_not_fit_are_told(check):
    report = check(rows(60, text="{} " + "long " * 20), max_length=40)
    assert report.splits["train"].truncated == report.splits["train"].rows
    assert any("are cut" in what for _, what in told(report))
    long = [{"prompt": "long " * 20, "completion": "x"} for _ in range(20)]
    report = check(long, task="generate", max_length=10)
    assert not report.trainable


def test_two_beginnings_are_an_error(check):
    report = check(rows(40, text="<bos><bos> {}"))
    assert any("begin with two <bos>" in what for level, what in told(report) if level == "error")


def test_unreadable_rows_name_file_and_line(check):
    with pytest.raises(DataError, match="line 2"):
        check([{"text": "x", "label": "a"}, {"tex": "x"}])
