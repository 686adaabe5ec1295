"""`make bench-training`: its verdicts, its page, and that every command that measures still starts."""

import importlib
import math
from pathlib import Path

import benchmarks
import pytest
from benchmarks import training
from benchmarks.training import Found

MODULES = sorted(
    {
        ".".join(("benchmarks", *path.relative_to(root).with_suffix("").parts))
        for root in map(Path, benchmarks.__path__)
        for path in root.rglob("*.py")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_no_benchmark_imports_what_has_moved_since_it_was_last_run(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize(
    ("value", "less", "verdict"),
    [
        (2.6, False, "reached"),
        (1.6, False, "floor"),
        (1.4, False, "missed"),
        (1.4, True, "reached"),
        (2.6, True, "missed"),
    ],
)
def test_a_line_tells_which_of_its_two_targets_was_reached(value, less, verdict):
    floor, want = (2.5, 1.5) if less else (1.5, 2.5)
    assert Found("x", value, floor, want, less_is_better=less).verdict == verdict


def test_the_page_has_a_line_for_everything_found_and_no_verdict_where_there_is_no_target():
    found = [Found("speed", 2.0, 1.5, 2.5, detail="why"), Found("end of the gain", 1.1, math.nan, math.nan)]
    lines = training.page({"a part": [training.line(each) for each in found]}, training.real(short=True)).splitlines()
    assert "| speed | 2x | 1.5x | 2.5x | floor | why |" in lines
    assert "| end of the gain | 1.1x |  |  |  |  |" in lines
