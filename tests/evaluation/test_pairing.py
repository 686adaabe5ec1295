"""Two reports on the same rows are compared in the way that the metric allows, never in one that it does not."""

import numpy as np
import pytest

from umbel.core.contract import OutputHead
from umbel.evaluation.answering import Answers
from umbel.evaluation.pairing import paired
from umbel.evaluation.questions import questions_of
from umbel.evaluation.scoring import score
from umbel.training.data.rows import LabelledRow, PromptRow, ValuedRow

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.normal(size=60).tolist()
NEAR = [repr(x + 0.1 * (i % 3)) for i, x in enumerate(TRUTH)]
FAR = [repr(x + (-1) ** i) for i, x in enumerate(TRUTH)]
VALUES = [ValuedRow(i, "t", value) for i, value in enumerate(TRUTH)]
LABELS = [LabelledRow(i, "t", ("ab"[i % 2],), False) for i in range(60)]
SPOKEN = [PromptRow(i, "p", "a b c d", ("a b c d",)) for i in range(60)]


def reports(rows, head, metric, good, bad):
    questions = questions_of(rows, head, metric, "x")
    return score(questions, Answers(good)), score(questions, Answers(bad)), questions


CASES = {
    "rmse": (VALUES, OutputHead.REGRESS, NEAR, FAR),
    "mae": (VALUES, OutputHead.REGRESS, NEAR, FAR),
    "macro_f1": (LABELS, OutputHead.CLASSIFY, list("ab" * 30), ["a"] * 60),
    "accuracy": (LABELS, OutputHead.CLASSIFY, list("ab" * 30), ["a"] * 60),
    "word_error_rate": (SPOKEN, OutputHead.GENERATE, ["a b c x"] * 30 + ["a b c d"] * 30, ["x y c d"] * 60),
}  # fmt: skip


@pytest.mark.parametrize("metric", CASES)
def test_the_difference_is_that_of_the_values_and_the_better_one_wins(metric):
    rows, head, good, bad = CASES[metric]
    a, b, questions = reports(rows, head, metric, good, bad)
    found = paired(a, b, questions)
    assert found.difference == pytest.approx(a.main.value - b.main.value)
    assert found.winner == "a"
    assert found.low <= found.difference <= found.high
    assert paired(b, a, questions).winner == "b"


@pytest.mark.parametrize("metric", CASES)
def test_a_version_against_itself_is_undecided(metric):
    rows, head, good, _ = CASES[metric]
    a, b, questions = reports(rows, head, metric, good, good)
    assert paired(a, b, questions).winner is None


def test_what_no_paired_test_fits_is_not_compared():
    rows, head, good, bad = CASES["rmse"]
    questions = questions_of(rows, head, "pearson", "x")
    assert paired(score(questions, Answers(good)), score(questions, Answers(bad)), questions) is None
