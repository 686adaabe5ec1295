"""What is told about data before training on them."""

import pytest

from umbel.core.errors import NotFound
from umbel.training.data.check import check_data


def test_copies_contradictions_and_leaks_are_counted(write, settings):
    rows = [
        {"text": "Good day", "label": "a"},
        {"text": "good day!", "label": "a"},
        {"text": "good day.", "label": "b"},
        {"text": "bad day", "label": "b"},
    ]
    test = write("test", [{"text": "RT @x bad day", "label": "b"}, {"text": "new", "label": "a"}])
    found = check_data(write("train", rows), settings, test=test)
    assert (found.form, found.copies, found.contradictions, found.leaks) == ("classify", 1, 1, 1)
    assert found.rows == {"train": 4, "test": 2}
    assert found.labels == {"a": 2, "b": 2}
    assert found.longest == 13


def test_every_form_can_be_checked(write, settings):
    rows = {
        "prompt": {"prompt": "a", "completion": "b"},
        "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        "tag": {"tokens": ["a"], "tags": ["X"]},
        "embed": {"text": "a", "positive": "b"},
        "regress": {"text": "a", "value": 1},
    }
    for form, row in rows.items():
        assert check_data(write(form, [row, row]), settings).form == form


def test_what_is_not_there_is_told(settings):
    with pytest.raises(NotFound) as caught:
        check_data("nothing", settings)
    assert caught.value.code == "dataset_not_found"
