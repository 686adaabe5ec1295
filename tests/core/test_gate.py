"""A gate is read strictly, and says which of its clauses fails by how much."""

import math

import pytest

from umbel.core.errors import UsageError
from umbel.core.gate import parse_gate


def test_all_four_signs_mean_what_they_say():
    gate = parse_gate("a>=1, b<=1,c>1 ,d<1e0")
    assert str(gate) == "a>=1, b<=1, c>1, d<1"
    assert gate.metrics == ("a", "b", "c", "d")
    assert gate.failures({"a": 1, "b": 1, "c": 1.5, "d": 0.5}) == []
    assert [told.split()[0] for told in gate.failures({"a": 0.9, "b": 1.1, "c": 1, "d": 1})] == ["a", "b", "c", "d"]


def test_a_failure_tells_the_figure_and_what_was_wanted():
    (told,) = parse_gate("accuracy>=0.8").failures({"accuracy": 0.71234})
    assert told == "accuracy is 0.7123, wanted >= 0.8"


@pytest.mark.parametrize("values", [{}, {"accuracy": math.nan}])
def test_what_was_not_measured_passes_nothing(values):
    assert parse_gate("accuracy>=0").failures(values)
    assert parse_gate("accuracy<=1").failures(values)


@pytest.mark.parametrize(
    "text",
    ["", " ", "accuracy", "accuracy=0.8", "accuracy==0.8", "accuracy>=", "accuracy>=high", "accuracy>=nan",
     "accuracy>=inf", "accuracy>=0.8,", "accuracy>=0.8 forgetting<=1", ">=1", "a>=1, a>=1", "accuracy=>0.8",
     "accuracy>=0.8; b>=1", "accuracy>=80%"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_right_form(text):
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert caught.value.code == "invalid_gate"
    assert "accuracy>=0.8, forgetting<=0.1" in caught.value.hint
