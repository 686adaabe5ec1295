import numpy as np
import pytest
from scipy import stats

from umbel.core.errors import DataError
from umbel.experiments import compare_scores, compare_statistic
from umbel.experiments.bootstrap import macro_f1, ratio, root_mean


def mean_of(values):
    return lambda items: values[items].mean(axis=1)


def labels(seed, n=300, skill_a=0.8, skill_b=0.6):
    rng = np.random.default_rng(seed)
    gold = rng.choice(["spam", "ham", "other"], n, p=[0.6, 0.3, 0.1])

    def answer(skill):
        return np.where(rng.random(n) < skill, gold, rng.choice(["spam", "ham", "other"], n))

    return gold, answer(skill_a), answer(skill_b)


def test_macro_f1_is_the_mean_of_each_labels_f1_worked_by_hand():
    statistic = macro_f1(["x", "x", "y", "z"], ["x", "y", "y", "z"], ["x", "x", "x", "x"])
    items = np.arange(4)[None, :]
    assert statistic(items)[0] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert statistic(items + 4)[0] == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)


def test_a_batch_of_resamples_equals_each_resample_alone():
    statistic = macro_f1(*labels(0, n=50))
    items = np.random.default_rng(1).integers(0, 50, (20, 50))
    np.testing.assert_allclose(statistic(items), [statistic(row[None, :])[0] for row in items], rtol=1e-12)


def test_for_a_mean_it_agrees_with_the_paired_comparison_of_scores():
    rng = np.random.default_rng(2)
    a = rng.beta(2, 5, 400)
    b = np.clip(a + rng.normal(0.02, 0.2, 400), 0, 1)
    ours, theirs = compare_statistic(400, mean_of(np.concatenate([a, b]))), compare_scores(a, b)
    assert ours.difference == pytest.approx(theirs.difference)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert ours.p_value == pytest.approx(theirs.p_value, abs=0.012)
    assert ours.minimum_detectable == pytest.approx(theirs.minimum_detectable, rel=0.03)
    assert ours.rows_needed == pytest.approx(theirs.rows_needed, rel=0.06)


def test_bca_equals_scipys_on_a_skewed_statistic():
    values = np.random.default_rng(3).exponential(1, 60)
    ours = compare_statistic(60, root_mean(np.concatenate([values**2, np.zeros(60)])), resamples=20_000)
    theirs = stats.bootstrap(
        (values**2,), lambda x, axis: np.sqrt(x.mean(axis=axis)), n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_a_better_classifier_wins_by_macro_f1_and_the_same_seed_gives_the_same_numbers():
    statistic = macro_f1(*labels(4))
    found = compare_statistic(300, statistic, points=True, resamples=2000)
    assert found.winner == "a"
    assert found == compare_statistic(300, statistic, points=True, resamples=2000)
    assert found != compare_statistic(300, statistic, points=True, resamples=2000, seed=1)
    assert "points of macro-F1 (95 % CI" in found.sentence("new", "old", "macro-F1")


def test_macro_f1_of_equal_classifiers_rarely_differs_and_its_interval_covers_zero():
    found = [compare_statistic(120, macro_f1(*labels(s, 120, 0.7, 0.7)), resamples=300, seed=s) for s in range(200)]
    assert np.mean([each.p_value < 0.05 for each in found]) <= 0.09
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.91


def test_items_of_one_document_are_drawn_together():
    """Every item of a document says the same: 400 items are worth 20 documents, and the interval must know it."""
    documents = np.repeat(np.arange(20), 20)
    per_document = np.random.default_rng(5).normal(0.3, 1, 20)
    values = np.concatenate([per_document[documents], np.zeros(400)])
    items = compare_statistic(400, mean_of(values), resamples=2000)
    clustered = compare_statistic(400, mean_of(values), clusters=documents, resamples=2000)
    by_document = compare_statistic(20, mean_of(np.concatenate([per_document, np.zeros(20)])), resamples=2000)
    assert clustered.high - clustered.low > 3 * (items.high - items.low)
    assert clustered.high - clustered.low == pytest.approx(by_document.high - by_document.low, rel=0.1)
    assert clustered.p_value == pytest.approx(by_document.p_value, abs=0.03)


def test_a_ratio_weighs_rows_by_their_length():
    statistic = ratio([1, 9, 0, 0], [10, 10, 10, 30])
    assert statistic(np.array([[0, 1], [2, 3], [1, 1]])) == pytest.approx([0.5, 0, 0.9])


def test_the_same_answers_are_no_difference():
    gold, a, _ = labels(6)
    found = compare_statistic(300, macro_f1(gold, a, a), resamples=200)
    assert (found.difference, found.p_value, found.interval, found.winner) == (0, 1, None, None)


def test_nothing_to_resample_is_refused():
    with pytest.raises(DataError, match="no rows"):
        compare_statistic(0, root_mean([]))
    with pytest.raises(DataError, match="cluster names"):
        compare_statistic(2, root_mean([0, 0, 1, 1]), clusters=["x"])
