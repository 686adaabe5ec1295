import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from umbel.core.errors import DataError
from umbel.evaluation import metrics
from umbel.evaluation.distance import edits
from umbel.evaluation.scored import scored_mean
from umbel.evaluation.scoring import interval
from umbel.experiments import compare, compare_statistic
from umbel.experiments.bootstrap import macro_f1, ratio

GOLD = ["x", "x", "y", "z"]
ANSWERS = ["x", "y", "y", "z"]
LABELS = ["x", "y", "z"]
PROBS = [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]
TOKENS = st.lists(st.sampled_from("abc"), max_size=6)


def test_accuracy_is_the_share_of_right_rows():
    found = metrics.accuracy(GOLD, ANSWERS)
    assert found.value == 0.75
    assert found.items.tolist() == [1, 0, 1, 1]


def test_macro_f1_is_the_mean_of_each_labels_f1():
    assert metrics.macro_f1(GOLD, ANSWERS).value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_a_label_that_only_the_model_knows_pulls_macro_f1_down():
    assert metrics.macro_f1(["x", "x"], ["x", "new"]).value == pytest.approx((2 / 3 + 0) / 2)


def test_macro_f1_equals_the_one_that_is_bootstrapped():
    rng = np.random.default_rng(0)
    gold, a, b = (rng.choice(LABELS, 90).tolist() for _ in range(3))
    found = compare_statistic(90, macro_f1(gold, a, b), resamples=10)
    assert found.mean_a == pytest.approx(metrics.macro_f1(gold, a).value)
    assert found.mean_b == pytest.approx(metrics.macro_f1(gold, b).value)


def test_log_loss_is_the_mean_surprise_in_nats():
    found = metrics.log_loss(GOLD, PROBS, LABELS)
    assert found.items == pytest.approx([-math.log(p) for p in (0.7, 0.3, 0.8, 0.5)])
    assert found.value == pytest.approx(found.items.mean())
    assert not found.higher_is_better


def test_a_right_label_held_impossible_costs_much_but_not_everything():
    assert metrics.log_loss(["x"], [[0.0, 1.0]], ["x", "y"]).value == pytest.approx(36.04, abs=0.01)


def test_brier_runs_from_0_for_certain_and_right_to_2_for_certain_and_wrong():
    found = metrics.brier(["x", "x", "x"], [[1, 0], [0, 1], [0.5, 0.5]], ["x", "y"])
    assert found.items.tolist() == [0, 2, 0.5]


def test_calibration_error_worked_by_hand():
    # confidences 0.95, 0.95 (one right), 0.65 (right): gaps 0.45 on two rows of three, 0.35 on one
    probs = [[0.95, 0.05], [0.95, 0.05], [0.65, 0.35]]
    found = metrics.calibration_error(["x", "y", "x"], probs, ["x", "y"], bins=10)
    assert found.value == pytest.approx((2 * 0.45 + 0.35) / 3)
    assert found.items == pytest.approx([-0.05, 0.95, -0.35])


def test_a_model_that_means_what_it_says_is_calibrated_and_a_boaster_is_not():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 40_000)
    gold = np.where(rng.random(p.size) < p, "x", "y").tolist()
    honest = metrics.calibration_error(gold, np.stack([p, 1 - p], axis=1), ["x", "y"])
    sure = np.full_like(p, 0.99)
    boaster = metrics.calibration_error(gold, np.stack([sure, 1 - sure], axis=1), ["x", "y"])
    assert honest.value < 0.015
    assert boaster.value == pytest.approx(0.24, abs=0.01)


def test_the_reliability_diagram_holds_every_row_once():
    table = metrics.reliability(GOLD, PROBS, LABELS, bins=10)
    assert sum(b.n for b in table) == 4
    assert all(b.low < b.confidence <= b.high for b in table)


def test_the_errors_of_numbers_are_the_usual_ones():
    gold, answers = [1.0, 2.0, 3.0], [1.0, 4.0, 2.0]
    assert metrics.rmse(gold, answers).value == pytest.approx(math.sqrt(5 / 3))
    assert metrics.rmse(gold, answers).items.tolist() == [0, 4, 1]
    assert metrics.mae(gold, answers).value == 1


def test_pearson_is_scipys_and_the_mean_of_its_rows():
    rng = np.random.default_rng(2)
    gold = rng.normal(size=50)
    answers = gold + rng.normal(size=50)
    found = metrics.pearson(gold, answers)
    assert found.value == pytest.approx(stats.pearsonr(gold, answers).statistic)
    assert found.items.mean() == pytest.approx(found.value)


def test_answers_that_never_change_follow_nothing():
    assert metrics.pearson([1, 2, 3], [0.1, 0.1, 0.1]).value == 0


def test_references_that_never_change_cannot_be_followed():
    with pytest.raises(DataError, match="no correlation"):
        metrics.pearson([1, 1], [1, 2])


def test_exact_match_minds_case_but_not_spaces_and_takes_any_reference():
    found = metrics.exact_match(["a b", ["x", "y"], "Q"], [" a  b\n", "y", "q"])
    assert found.items.tolist() == [1, 1, 0]


def test_phoneme_error_rate_counts_tokens_caps_each_word_and_takes_the_best_pronunciation():
    references = ["P R AH0", ["T AH M EY T OW", "T AH M AA T OW"], "K AE T", "AY"]
    answers = ["P R AH0", "T AH M AA T OW", "K T", "N OW N S EH N S"]
    found = metrics.phoneme_error_rate(references, answers)
    assert found.items == pytest.approx([0, 0, 1 / 3, 1])
    assert found.value == pytest.approx(1 / 3)
    assert not found.higher_is_better


def test_the_best_pronunciation_is_the_best_by_rate_not_by_edits():
    assert metrics.phoneme_error_rate([["A", "A B C D"]], ["A X C Y"]).value == pytest.approx(0.5)
    assert metrics.phoneme_error_rate([["A B", "A B C D E F"]], ["A B C"]).value == pytest.approx(0.5)


def test_silence_is_an_error_rate_of_one():
    assert metrics.phoneme_error_rate(["K AE T"], [""]).value == 1


def test_word_error_rate_divides_all_edits_by_all_words():
    found = metrics.word_error_rate(["a b c d", "e"], ["a b c d", "x y z"])
    assert found.value == pytest.approx(3 / 5)
    assert found.items.tolist() == [0, 3]
    stacked = ratio(np.tile(found.items * found.weights, 2), np.tile(found.weights, 2))
    assert stacked(np.array([[0, 1]]))[0] == pytest.approx(found.value)


def test_an_empty_reference_is_refused():
    for wanted in ("", [], ["K", " "]):
        with pytest.raises(DataError, match="reference is empty"):
            metrics.phoneme_error_rate([wanted], ["K"])


@pytest.mark.parametrize(("one", "other", "far"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)])
def test_edits_are_levenshteins(one, other, far):
    assert edits(one, other) == far


@given(TOKENS, TOKENS, TOKENS)
def test_edits_are_a_distance(a, b, c):
    assert (edits(a, b) == 0) == (a == b)
    assert edits(a, b) == edits(b, a)
    assert edits(a, c) <= edits(a, b) + edits(b, c)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))


@given(TOKENS, TOKENS)
def test_edits_equal_the_plain_recursion(a, b):
    def slow(i, j):
        if i == 0 or j == 0:
            return i + j
        if a[i - 1] == b[j - 1]:
            return slow(i - 1, j - 1)
        return 1 + min(slow(i - 1, j), slow(i, j - 1), slow(i - 1, j - 1))

    assert edits(a, b) == slow(len(a), len(b))


def test_row_scores_go_straight_into_a_paired_comparison():
    rng = np.random.default_rng(3)
    gold = rng.choice(LABELS, 400).tolist()
    good, bad = ([g if rng.random() < skill else "x" for g in gold] for skill in (0.95, 0.5))
    new, old = metrics.accuracy(gold, good), metrics.accuracy(gold, bad)
    found = compare(new.items, old.items, higher_is_better=new.higher_is_better, points=new.points)
    assert found.difference == pytest.approx(new.value - old.value)
    assert found.winner == "a"


@pytest.mark.parametrize(
    "metric",
    [*metrics.LABEL_METRICS.values(), *metrics.TEXT_METRICS.values(), *metrics.NUMBER_METRICS.values()],
)
def test_no_rows_and_unequal_rows_are_refused(metric):
    with pytest.raises(DataError) as empty:
        metric([], [])
    assert empty.value.code == "no_rows"
    with pytest.raises(DataError) as unequal:
        metric(["1", "2"], ["1"])
    assert unequal.value.code == "unpaired_scores"


@pytest.mark.parametrize("metric", metrics.PROBABILITY_METRICS.values())
@pytest.mark.parametrize(
    ("gold", "probs", "says"),
    [
        (["x"], [[0.5, 0.2]], "row 1: probabilities"),
        (["x", "y"], [[0.5, 0.5], [1.5, -0.5]], "row 2: probabilities"),
        (["x"], [[math.nan, 1.0]], "row 1: probabilities"),
        (["new"], [[0.5, 0.5]], "label 'new'"),
        (["x"], [[0.5, 0.3, 0.2]], "shape"),
        ([], [], "at least one row"),
    ],
)
def test_what_is_no_probability_is_refused(metric, gold, probs, says):
    with pytest.raises(DataError, match=says):
        metric(gold, probs, ["x", "y"])


def test_a_number_that_is_not_finite_is_refused_by_its_row():
    with pytest.raises(DataError, match="row 2"):
        metrics.rmse([1, 2], [1, math.inf])


@pytest.mark.parametrize("rates", [[0.0] * 9 + [1.0, 0.6], [1.0] * 9 + [0.4, 0.0]])
def test_an_interval_of_a_share_stays_between_0_and_1_with_few_rows_too(rates):
    low, high = interval(scored_mean("phoneme_error_rate", np.array(rates), higher_is_better=False))
    assert 0 <= low < np.mean(rates) < high <= 1


def test_an_interval_of_what_is_no_share_may_pass_1_but_not_fall_below_0():
    low, high = interval(scored_mean("mae", np.array([0.0] * 9 + [9.0]), points=False))
    assert low == 0
    assert high > 1
