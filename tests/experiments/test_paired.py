import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from umbel.core.errors import DataError
from umbel.experiments import compare, compare_binary, compare_scores, holm
from umbel.experiments.intervals import constrained_rate, mean_interval, tango
from umbel.experiments.paired import mcnemar_p, sign_flip_p


def scores(both=0, only_a=0, only_b=0, neither=0):
    """Two right-or-wrong vectors with these counts."""
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


def test_mid_p_is_the_published_value_of_a_published_table():
    # Fagerland, Lydersen and Laake 2013, airway hyper-responsiveness: 1 and 7 discordant of 21, mid-p 0.0391
    assert mcnemar_p(1, 7) == pytest.approx(0.0391, abs=5e-5)


def test_from_25_discordant_rows_the_p_value_is_statsmodels_exact_one():
    assert mcnemar_p(8, 17) == mcnemar([[3, 8], [17, 4]], exact=True).pvalue
    assert mcnemar_p(8, 16) < mcnemar([[3, 8], [16, 4]], exact=True).pvalue


@pytest.mark.parametrize("k", [1, 5, 12, 13, 40])
def test_an_even_split_of_discordant_rows_has_p_value_one(k):
    assert mcnemar_p(k, k) == pytest.approx(1.0)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(1, 7, 21), (0, 1, 44), (9, 2, 30), (0, 0, 12), (40, 31, 500)])
def test_tango_ends_are_the_differences_that_a_score_test_just_rejects(only_a, only_b, n):
    found, z = tango(only_a, only_b, n), stats.norm.isf(0.025)
    for delta in (found.low, found.high):
        variance = n * (2 * constrained_rate(only_a, only_b, n, delta) + delta * (1 - delta))
        assert (only_a - only_b - n * delta) ** 2 / variance == pytest.approx(z**2, rel=1e-6)


@pytest.mark.parametrize("delta", [-0.4, -0.1, 0.05, 0.3])
def test_the_constrained_rate_is_where_the_likelihood_peaks(delta):
    only_a, only_b, n = 5, 9, 40

    def loss(rate_b):
        rates = rate_b + delta, rate_b, 1 - 2 * rate_b - delta
        return -sum(
            k * math.log(max(r, 1e-300)) for k, r in zip((only_a, only_b, n - only_a - only_b), rates, strict=True)
        )

    peak = optimize.minimize_scalar(
        loss, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-10}
    )
    assert constrained_rate(only_a, only_b, n, delta) == pytest.approx(peak.x, abs=1e-6)


def test_tango_without_a_discordant_row_has_the_width_of_its_closed_form():
    z2 = stats.norm.isf(0.025) ** 2
    assert tango(0, 0, 50).high == pytest.approx(z2 / (50 + z2))
    assert tango(0, 0, 50).low == pytest.approx(-z2 / (50 + z2))


def test_tango_mirrors_when_the_versions_change_places():
    one, other = tango(9, 2, 30), tango(2, 9, 30)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize(("only_a", "only_b"), [(20, 0), (0, 20)])
def test_tango_reaches_the_end_where_every_row_agrees_on_the_winner(only_a, only_b):
    found, z2 = tango(only_a, only_b, 20), stats.norm.isf(0.025) ** 2
    near, far = sorted((abs(found.low), abs(found.high)))
    assert (near, far) == pytest.approx(((20 - z2) / (20 + z2), 1))  # the closed form of this corner


@pytest.mark.parametrize(
    ("rate_a", "rate_b", "most"), [(0.1, 0.1, 0.965), (0.2, 0.1, 0.965), (0.3, 0.05, 0.965), (0.05, 0.02, 1.0)]
)
def test_tango_covers_the_true_difference_at_its_level(rate_a, rate_b, most):
    """Exact coverage, by summing over every table of 40 rows. With two discordant rows in 40 it may only be wide."""
    n, covered = 40, 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        weight = stats.multinomial.pmf([a, b, n - a - b], n, [rate_a, rate_b, 1 - rate_a - rate_b]) if a + b <= n else 0
        if weight > 1e-7:
            found = tango(a, b, n)
            covered += weight * (found.low <= rate_a - rate_b <= found.high)
    assert 0.94 <= covered <= most


def test_the_mid_p_test_keeps_its_level_and_is_less_shy_than_the_exact_one():
    k = 20
    wins = np.arange(k + 1)
    weight = stats.binom.pmf(wins, k, 0.5)
    level = sum(w for i, w in zip(wins, weight, strict=True) if mcnemar_p(i, k - i) < 0.05)
    exact = sum(w for i, w in zip(wins, weight, strict=True) if stats.binomtest(int(i), k).pvalue < 0.05)
    assert exact <= level <= 0.055


def test_a_few_rows_are_tested_over_every_sign_pattern():
    d = np.array([0.3, -0.1, 0.7, 0.2, 0.0, 0.5, -0.05, 0.9])
    signs = np.array(list(itertools.product([1, -1], repeat=d.size)))
    by_hand = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
    assert sign_flip_p(d) == pytest.approx(by_hand)


def test_on_right_or_wrong_scores_the_sign_flip_test_is_mcnemars():
    d = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 30)
    assert sign_flip_p(d) == pytest.approx(mcnemar([[0, 9], [2, 0]], exact=True).pvalue)


def test_the_sampled_p_value_is_students_on_plain_differences_and_repeats_with_its_seed():
    d = np.random.default_rng(3).normal(0.3, 1, 60)
    found = sign_flip_p(d, seed=1)
    assert found == sign_flip_p(d, seed=1)
    assert found == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [8, 60])
def test_intervals_of_a_mean_cover_the_truth(n):
    """Bounded, skewed differences of mean 0.1, as an error rate per word has them; small samples and large."""
    rng, rounds, hit = np.random.default_rng(n), 400, 0
    for seed in range(rounds):
        d = rng.beta(2, 3, n) - 0.3
        found = mean_interval(d, confidence=0.95, resamples=1000, seed=seed)
        hit += found.low <= 0.1 <= found.high
    assert 0.92 <= hit / rounds <= 0.985


def test_bca_is_the_normal_interval_on_many_plain_differences():
    d = np.random.default_rng(0).normal(0.2, 1, 4000)
    found, half = mean_interval(d, confidence=0.95, resamples=4000, seed=0), 1.96 * d.std(ddof=1) / math.sqrt(d.size)
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.003)


def test_a_finding_reads_as_one_sentence():
    found = compare_binary(*scores(both=700, only_a=60, only_b=39, neither=201))
    assert found.sentence("tone:2", "tone:1", "accuracy").startswith(
        "tone:2 is better by 2.1 points of accuracy (95 % CI 0."
    )
    assert (found.winner, found.n, found.discordant) == ("a", 1000, 99)
    assert found.effect == pytest.approx(60 / 99 - 0.5)
    assert found.interval_a is not None
    assert found.interval_a.low < 0.76 < found.interval_a.high


def test_changing_places_changes_only_the_name_of_the_leader():
    a, b = scores(both=700, only_a=60, only_b=39, neither=201)
    assert compare(a, b).sentence("x", "y", "accuracy") == compare(b, a).sentence("y", "x", "accuracy")


def test_where_lower_is_better_the_version_with_the_lower_mean_wins():
    rng = np.random.default_rng(0)
    a = rng.random(200) * 0.5
    found = compare_scores(a, a + rng.random(200) * 0.1, higher_is_better=False, points=True)
    assert found.difference < 0
    assert found.winner == "a"
    points = abs(found.difference) * 100
    told = found.sentence("new", "old", "phoneme error rate")
    assert told.startswith(
        f"new is better with {points:.1f} points less phoneme error rate (95 % CI {found.high * -100:.1f}"
    )
    plain = compare_scores(a, a + rng.random(200) * 0.1, higher_is_better=False)
    assert plain.sentence("new", "old", "rmse").startswith(
        f"new is better with {abs(plain.difference):.3g} less rmse ("
    )
    few = compare_binary(*scores(both=80, only_a=9, only_b=6, neither=5), higher_is_better=False)
    assert "y leads with 3.0 points less word_error_rate on 100 rows (" in few.sentence("x", "y", "word_error_rate")


def test_an_open_question_says_how_many_more_rows_would_settle_it():
    found = compare_binary(*scores(both=80, only_a=9, only_b=6, neither=5))
    assert found.winner is None
    assert found.rows_to_add == found.rows_needed - 100
    text = found.sentence("x", "y", "accuracy")
    assert text.startswith("cannot tell x from y: x leads by 3.0 points of accuracy on 100 rows (95 % CI -")
    assert "more rows would settle a difference of this size" in text


def test_the_rows_asked_for_give_80_percent_power():
    """Draw that many rows from the rates that the forecast was made from, many times over."""
    seen = compare_binary(*scores(both=80, only_a=12, only_b=6, neither=2))
    n = seen.rows_needed
    drawn = np.random.default_rng(0).multinomial(n, [0.12, 0.06, 0.82], 2000)
    assert np.mean([mcnemar_p(int(a), int(b)) < 0.05 for a, b, _ in drawn]) == pytest.approx(0.8, abs=0.03)


def test_the_detectable_difference_is_detected_four_times_in_five():
    seen = compare_binary(*scores(both=300, only_a=30, only_b=30, neither=40))
    d = seen.minimum_detectable
    drawn = np.random.default_rng(0).multinomial(400, [0.075 + d / 2, 0.075 - d / 2, 0.85], 2000)
    assert np.mean([mcnemar_p(int(a), int(b)) < 0.05 for a, b, _ in drawn]) == pytest.approx(0.8, abs=0.035)


def test_the_detectable_mean_is_detected_four_times_in_five():
    base = np.random.default_rng(1).normal(0, 1, 20)
    seen = compare_scores(base, np.zeros(20))
    drawn = np.random.default_rng(2).normal(seen.minimum_detectable, base.std(ddof=1), (4000, 20))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_rows_that_could_never_be_significant_are_never_forecast_to_settle_it():
    assert compare([1], [0]).rows_needed == 5  # 0.5 ** 5 is the first below 0.05
    assert compare([1, 1, 1, 1], [0, 0, 0, 0]).winner is None
    assert compare([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]).winner == "a"
    assert compare([0.9, 0.8], [0.1, 0.1]).rows_needed == 6
    assert compare([1, 0, 0, 0], [0, 0, 0, 0]).minimum_detectable is None


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows") as refused:
        compare([], [])
    assert refused.value.code == "no_rows"


def test_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="one score per row") as refused:
        compare([1, 0], [1])
    assert refused.value.code == "unpaired_scores"


def test_a_score_that_is_no_number_is_refused_by_its_row():
    with pytest.raises(DataError, match="row 2"):
        compare([1.0, math.nan], [0.5, 0.5])


@pytest.mark.parametrize("same", [[1, 1, 0, 1] * 10, [0.2, 0.9, 0.4] * 20, [1] * 7, [0.5]])
def test_the_same_scores_are_never_a_difference(same):
    found = compare(same, same)
    assert (found.difference, found.discordant, found.p_value, found.effect) == (0, 0, 1, 0)
    assert (found.winner, found.rows_needed, found.rows_to_add) == (None, None, None)
    assert found.sentence("x", "y", "f1").startswith("cannot tell x from y by f1: they score the same on ")


def test_no_discordant_row_still_leaves_room_for_a_difference():
    found = compare([1, 0] * 25, [1, 0] * 25)
    assert found.low < 0 < found.high
    assert found.minimum_detectable == pytest.approx(0.12, abs=0.03)


@pytest.mark.parametrize(("a", "b"), [([1], [0]), ([0.4], [0.1])])
def test_one_row_decides_nothing(a, b):
    found = compare(a, b)
    assert found.winner is None
    assert found.p_value > 0.49
    assert found.sentence("x", "y", "f1").startswith("cannot tell x from y: x leads by ")
    assert "on 1 row (" in found.sentence("x", "y", "f1")


def test_one_graded_row_has_no_interval_rather_than_a_width_of_zero():
    assert compare([0.4], [0.1]).interval is None


def test_rounding_is_not_a_difference():
    found = compare([0.1 + 0.2] * 20 + [0.5], [0.3] * 20 + [0.5])
    assert found.discordant == 0


def test_the_same_gain_on_every_row_is_a_win_without_an_interval():
    a = np.linspace(0.2, 0.7, 20)
    found = compare(a + 0.1, a)
    assert (found.winner, found.interval, found.effect) == ("a", None, None)
    assert "no interval" in found.sentence("x", "y", "f1")


def test_holm_gives_the_values_worked_by_hand_and_can_take_a_win_back():
    weak = compare_binary(*scores(both=80, only_a=14, only_b=4, neither=2))
    none = compare_binary(*scores(both=80, only_a=7, only_b=7, neither=6))
    assert weak.winner == "a"
    family = holm([weak, none, none, none, none])
    assert family[0].p_adjusted == pytest.approx(5 * weak.p_value)
    assert family[1].p_adjusted == 1
    assert [each.winner for each in family] == [None] * 5
    assert "after Holm over 5 comparisons" in family[0].sentence("x", "y", "accuracy")
    assert holm([]) == []


def test_two_equal_versions_are_called_different_no_more_often_than_promised():
    rng = np.random.default_rng(5)
    wins = [compare(rng.random(80) < 0.7, rng.random(80) < 0.7).winner is not None for _ in range(600)]
    assert np.mean(wins) <= 0.07


def test_graded_scores_of_two_equal_versions_too():
    rng = np.random.default_rng(6)
    found = [compare_scores(rng.beta(1, 3, 30), rng.beta(1, 3, 30), resamples=500, seed=i) for i in range(400)]
    assert np.mean([each.winner is not None for each in found]) <= 0.07


def test_two_shares_of_1_never_differ_by_more_than_1():
    a, b = [1.0, 1.0, 1.0, 0.1], [0.0, 0.0, 0.0, 0.1]
    assert compare_scores(a, b, points=True).interval.high == 1
    assert compare_scores(b, a, points=True).interval.low == -1
    assert compare_scores(a, b).interval.high > 1  # stars, seconds
