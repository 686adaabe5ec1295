"""The self-check sees what it is there to see."""

import pytest

from umbel.backbone.loading import load_backbone
from umbel.core.forms import FORMS
from umbel.engine.selfcheck import check_rows


def test_bf16_passes_and_says_so(bf16):
    report = check_rows(bf16)
    assert [check.name for check in report.checks] == [
        "qkv",
        "o",
        "gate_up",
        "down",
        "lm_head",
        "attention",
        "a decode step",
    ]
    assert report.summary == "bfloat16 on cpu: a row has the same bits in any company."


def test_fp32_is_equal_within_rounding(fp32):
    assert max(check.largest for check in check_rows(fp32).checks) < 2e-4


def test_a_linear_that_looks_at_its_neighbours_is_found(bf16, monkeypatch):
    layer = bf16.decoder.layers[0]
    honest = layer.down.forward
    monkeypatch.setattr(layer.down, "forward", lambda x, *_: honest(x) + x.mean() * 0.1)
    report = check_rows(bf16)
    assert not report.bit_equal
    assert [check.name for check in report.checks if not check.equal] == ["down", "a decode step"]
    assert "depend on its company in down, a decode step" in report.summary


@pytest.mark.parametrize("form", FORMS)
def test_quantised_kernels_are_looked_at_and_are_equal_in_bits(folder, form):
    report = check_rows(load_backbone(folder, dtype="bf16", packed=True, quantise=form))
    assert report.bit_equal, report.summary
    names = {check.name for check in report.checks}
    assert ("qkv of prompts" in names) == (form == "int8")  # whose prompts are multiplied in their own way
