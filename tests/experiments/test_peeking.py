"""Why sequential.py exists: 100 looks at an A/A test make a plain z-test find a winner that is not there."""

import numpy as np
import pytest

from umbel.experiments import sequential
from umbel.experiments.sequential import Sums, anytime_p, boundary, difference, log_mismatch, mean

LOOKS = np.unique(np.geomspace(100, 10_000, 100).astype(int))


def standard_errors_away(draw, *, runs, effect=0.0, seed=0):
    """|difference| / standard error of two arms at each look, (runs, looks): arms take turns, n counts both."""
    rng, blocks = np.random.default_rng(seed), []
    for _ in range(runs // 100):
        a, b = (draw(rng, (100, LOOKS[-1] // 2)) for _ in range(2))
        per_arm = LOOKS // 2
        (mean_a, var_a), (mean_b, var_b) = _running(a + effect, per_arm), _running(b, per_arm)
        blocks.append(np.abs(mean_a - mean_b) / np.sqrt((var_a + var_b) / per_arm))
    return np.concatenate(blocks)


def _running(values, counts):
    total = np.cumsum(values, axis=1)[:, counts - 1]
    squares = np.cumsum(values**2, axis=1)[:, counts - 1]
    return total / counts, (squares - total**2 / counts) / (counts - 1)


def normal(rng, shape):
    return rng.standard_normal(shape)


def rare(rng, shape):
    return (rng.random(shape) < 0.1).astype(float)


def skewed(rng, shape):
    return rng.exponential(1.0, shape)


@pytest.fixture(scope="module")
def aa():
    return standard_errors_away(normal, runs=1000)


def test_a_hundred_looks_at_equal_arms_give_at_most_5_percent_false_winners(aa):
    assert len(LOOKS) >= 90
    assert (aa > boundary(LOOKS)).any(axis=1).mean() <= 0.05


def test_the_plain_z_test_fails_the_same_trial_which_is_why_it_is_not_used(aa):
    assert (aa > 1.96).any(axis=1).mean() > 0.25
    assert (aa[:, -1] > 1.96).mean() == pytest.approx(0.05, abs=0.02)  # at one look it is right


@pytest.mark.parametrize("draw", [rare, skewed])
def test_rates_and_skewed_values_are_safe_too(draw):
    assert (standard_errors_away(draw, runs=400, seed=1) > boundary(LOOKS)).any(axis=1).mean() <= 0.05


def test_a_real_difference_is_found_most_of_the_time():
    found = standard_errors_away(normal, runs=400, effect=0.1, seed=2) > boundary(LOOKS)
    assert found[:, -1].mean() > 0.85  # a z-test at n = 10,000 alone would have 99.9 %


def test_the_width_is_what_was_measured_before():
    assert boundary(5_000) / 1.96 == pytest.approx(1.55, abs=0.02)
    assert boundary(50_000) / 1.96 == pytest.approx(1.65, abs=0.02)


def test_the_formula_is_the_published_one():
    alpha, horizon, n = 0.05, 5000, 1234
    rho2 = (-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / horizon
    half = np.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * np.log(np.sqrt(n * rho2 + 1) / alpha))
    assert boundary(n) / np.sqrt(n) == pytest.approx(half)


def test_the_sequence_is_tightest_about_its_horizon():
    n = np.geomspace(100, 1e6, 400)
    for horizon in (1_000, 5_000, 50_000):
        tightest = n[np.argmin(boundary(n, horizon=horizon))]
        assert 0.5 < tightest / horizon < 2


def test_the_p_value_is_alpha_exactly_at_the_edge_of_the_interval():
    for n in (100, 5_000, 90_000):
        edge = float(boundary(n))
        assert anytime_p(edge, 1.0, n) == pytest.approx(0.05)
        assert anytime_p(edge * 1.01, 1.0, n) < 0.05 < anytime_p(edge * 0.99, 1.0, n)
    assert anytime_p(0.0, 1.0, 100) == 1


def test_sums_give_the_mean_and_variance_of_the_values():
    values = np.random.default_rng(0).normal(3, 2, 500)
    sums = Sums.of(values)
    assert (sums.n, sums.mean, sums.variance) == (500, pytest.approx(values.mean()), pytest.approx(values.var(ddof=1)))
    assert Sums.of([1e8 + 0.1] * 50).variance == 0


def test_two_equal_arms_have_the_error_of_the_two_sample_mean():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 2, 300), rng.normal(0, 1, 700)
    found = difference(Sums.of(a), Sums.of(b))
    error = np.sqrt(a.var(ddof=1) / 300 + b.var(ddof=1) / 700)
    assert (found.value, found.error) == (pytest.approx(a.mean() - b.mean()), pytest.approx(error))
    assert found.interval.high - found.value == pytest.approx(error * boundary(1000))
    assert found.interval.excludes(0) == (found.p_value < 0.05)


def test_one_mean_is_covered_at_all_looks():
    rng, missed = np.random.default_rng(2), 0
    for _ in range(200):
        values = rng.exponential(1.0, 5_000)
        looks = (mean(Sums.of(values[:n])) for n in range(200, 5_001, 200))
        missed += any(look.interval.excludes(1.0) for look in looks)
    assert missed / 200 <= 0.05


def test_values_without_spread_have_no_interval():
    assert mean(Sums.of([1.0] * 80)) is None
    assert difference(Sums.of([0.0] * 80), Sums.of([0.0] * 80)) is None
    assert difference(Sums.of([0.0]), Sums.of([0.0, 1.0])) is None


def test_an_arm_that_always_fails_beside_one_that_never_does_is_no_open_question():
    found = difference(Sums.of([1.0] * 60), Sums.of([0.0] * 60))
    assert found.value == 1.0
    assert found.interval.excludes(0)
    assert not difference(Sums.of([1.0] * 2), Sums.of([0.0] * 2)).interval.excludes(0)


def test_the_mismatch_e_value_has_mean_one_under_a_sound_split():
    """What makes it an e-value, by summing over all counts of 200 units."""
    from scipy import stats

    first = np.arange(201)
    e = np.exp(log_mismatch(np.stack([first, 200 - first], axis=-1), [0.3, 0.7], concentration=50))
    assert (stats.binom.pmf(first, 200, 0.3) * e).sum() == pytest.approx(1.0)


def test_the_mismatch_is_the_beta_binomial_for_two_arms():
    from scipy.special import betaln

    by_hand = betaln(500 + 480, 500 + 520) - betaln(500, 500) - 1000 * np.log(0.5)
    assert log_mismatch([480, 520], [1, 1]) == pytest.approx(by_hand)


def test_a_sound_split_is_rarely_accused_over_a_hundred_looks_and_a_broken_one_is_found():
    sound, broken = (_looks(np.random.default_rng(3), share, 2000) for share in (0.5, 0.48))
    bar = np.log(sequential.MISMATCH_ABOVE)
    assert (log_mismatch(sound, [1, 1]) > bar).any(axis=1).mean() <= 0.01
    assert (log_mismatch(broken, [1, 1]) > bar).any(axis=1).mean() == pytest.approx(0.74, abs=0.05)


def _looks(rng, share, runs):
    steps = np.diff(LOOKS, prepend=0)
    first = np.cumsum(rng.binomial(steps, share, (runs, len(steps))), axis=1)
    return np.stack([first, LOOKS - first], axis=-1)


def test_one_unit_in_a_closed_arm_is_proof():
    assert log_mismatch([500, 500, 1], [1, 1, 0]) == np.inf
    assert np.isfinite(log_mismatch([500, 500, 0], [1, 1, 0]))


def test_a_split_of_a_billion_units_is_still_counted_right():
    assert log_mismatch([500_000_000, 500_000_000], [1, 1]) < 0


def test_an_interval_of_zeros_and_ones_ends_where_the_truth_can_be():
    up, down = Sums.of([1.0] * 58 + [0.0] * 2), Sums.of([0.0] * 58 + [1.0] * 2)
    assert difference(up, down).interval.high == 1
    assert difference(down, up).interval.low == -1
    assert (mean(up).interval.high, mean(down).interval.low) == (1, 0)
    averaged = (60, 58.5, 58.25)  # two outcomes of one unit differ: its value is 0.5
    assert difference(Sums(*averaged, zero_or_one=True), down).interval.high == 1
    assert difference(Sums(*averaged), down).interval.high > 1
    graded = difference(Sums.of([5.0] * 58 + [1.0] * 2), down)
    assert graded.interval.high > graded.value > 1  # what is no share is left as it is
