"""The page of `make bench-tuning`: one row per way, means over seeds, and no mixing of budgets."""

import json

import pytest
from benchmarks import tuning

BUDGET = {"backbone": "b", "data": "d", "steps": 3, "batch_size": 16, "held_out": 9}


def cell(way, seed, accuracy):
    return {
        "way": way, "seed": seed, "accuracy": accuracy, "forgetting": 0.25, "general": 0.0, "parameters": 1_234_567,
        "peak": 2e9, "seconds": 61.0, "bytes": 2_470_000,
    }  # fmt: skip


def test_the_page_has_a_row_for_each_way_that_was_measured_with_its_mean_and_interval():
    cells = [cell("all", 0, 0.7), cell("all", 1, 0.8), cell("head", 0, 0.5)]
    text = tuning.page({"machine": {"cpu": "x"}, "budget": BUDGET, "cells": cells})
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `head` | 1,234,567 | 0.500 (one seed) | 0.250 (one seed) | 2.00 GB | 61 | 2.47 MB |",
        "| `all` | 1,234,567 | 0.750 ± 0.635 | 0.250 ± 0.000 | 2.00 GB | 61 | 2.47 MB |",
    ]


def test_cells_of_another_budget_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "FILE", tmp_path / "tuning.json")
    (tmp_path / "tuning.json").write_text(json.dumps({"machine": {}, "budget": BUDGET, "cells": []}))
    assert tuning.opened(BUDGET)["cells"] == []
    with pytest.raises(SystemExit, match="another budget"):
        tuning.opened({**BUDGET, "steps": 4})


def test_what_is_measured_already_is_not_measured_again(monkeypatch):
    book = {"machine": {}, "budget": BUDGET, "cells": [cell("all", 0, 0.7)]}
    monkeypatch.setattr(tuning.subprocess, "run", lambda *_, **__: pytest.fail("a known cell was measured again"))
    tuning.measure(book, ["all"], [0])
