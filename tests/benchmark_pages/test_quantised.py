"""The page of `make bench-quantised`: every form in every table, and other work on the machine is told."""

import json

import pytest
from benchmarks import quantised

from umbel.core.forms import FORMS


@pytest.fixture
def report():
    return json.loads(quantised.KEPT.read_text())


def test_every_form_has_its_quality_bytes_and_speeds(report):
    assert report["quality"].keys() == {"bf16", *FORMS, quantised.APART}
    for speeds in (*report["decode"].values(), report["prefill"], report["train"]):
        assert speeds.keys() == {"bf16", *FORMS}
    sizes = [report["quality"][name]["bytes"] for name in ("bf16", "int8", "int4", "nf4")]
    assert sizes == sorted(sizes, reverse=True)


def test_ratios_are_of_bf16_in_the_same_run():
    row = quantised.speed_row("decoding", {"bf16": 50.0, "int8": 75.0, "int4": 25.0})
    assert row == "| decoding | 50 | 75 (1.50x) | 25 (0.50x) |"


def test_speeds_that_were_measured_beside_other_work_are_told_as_such(report):
    assert "Other work ran" in quantised.page({**report, "load": 3.0})
    assert "Other work ran" not in quantised.page({**report, "load": 0.2})
