import hashlib
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from umbel.core.errors import ConfigError
from umbel.experiments import Split, bucket

UNITS = [f"user-{i}" for i in range(40_000)]


def halves(**changes):
    return Split(**{"salt": "s", "arms": ("control", "candidate"), "weights": (1, 1), **changes})


def arms_of(split):
    return [split.arm(unit) for unit in UNITS]


def test_the_bucket_is_the_documented_hash():
    first = hashlib.sha256(b"salt\x00unit").digest()[:8]
    assert bucket("salt", "unit") == int.from_bytes(first, "big") / 2**64


def test_the_bucket_of_a_known_unit_never_changes():
    assert bucket("exp-1", "user-42") == 0.3567037630330452


def test_buckets_are_uniform():
    counts = np.histogram([bucket("a salt", unit) for unit in UNITS], bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 0.001


def test_two_experiments_divide_the_same_units_independently():
    """A hash whose buckets only shift with the salt passes the test above and fails this one."""
    one, other = ([int(10 * bucket(salt, unit)) for unit in UNITS] for salt in ("exp-1", "exp-2"))
    table = np.zeros((10, 10))
    np.add.at(table, (one, other), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_salt_and_unit_cannot_run_into_each_other():
    assert bucket("ab", "c") != bucket("a", "bc")


def test_arms_get_their_weights():
    split = Split(salt="w", arms=("a", "b", "c"), weights=(5, 3, 2))
    counts = Counter(arms_of(split))
    assert stats.chisquare([counts[x] for x in "abc"], [len(UNITS) * p for p in split.proportions]).pvalue > 0.001


def test_a_unit_always_gets_the_same_arm():
    assert arms_of(halves()) == arms_of(halves())


def test_ramping_up_never_moves_who_was_in():
    steps = [
        halves(share=share, arms=("a", "b", "c"), weights=(2, 1, 1))
        for share in (0.0, 0.01, 0.05, 0.25, 0.5, 0.999, 1.0)
    ]
    before = arms_of(steps[0])
    assert set(before) == {None}
    for step in steps[1:]:
        after = arms_of(step)
        assert all(old in (None, new) for old, new in zip(before, after, strict=True))
        assert Counter(after).total() - Counter(after)[None] > Counter(before).total() - Counter(before)[None]
        before = after
    assert None not in before


def test_a_ramp_keeps_the_proportions():
    counts = Counter(arms_of(halves(share=0.2, weights=(3, 1))))
    assert (
        stats.chisquare(
            [counts["control"], counts["candidate"], counts[None]], np.array([0.15, 0.05, 0.8]) * len(UNITS)
        ).pvalue
        > 0.001
    )


def test_raising_the_candidates_weight_never_moves_a_unit_back():
    small, large = arms_of(halves(weights=(95, 5))), arms_of(halves(weights=(50, 50)))
    assert all(new == "candidate" for old, new in zip(small, large, strict=True) if old == "candidate")


def test_three_arms_do_move_on_new_weights_which_is_what_stored_exposures_are_for():
    wide = {"arms": ("a", "b", "c")}
    before, after = arms_of(halves(weights=(90, 5, 5), **wide)), arms_of(halves(weights=(50, 25, 25), **wide))
    assert any(
        (old == "c" and new != "c") or (old == "b" and new != "b") for old, new in zip(before, after, strict=True)
    )


def test_an_arm_of_weight_zero_gets_nobody():
    assert set(arms_of(halves(arms=("a", "b", "c"), weights=(1, 0, 1)))) == {"a", "c"}
    assert set(arms_of(halves(weights=(0, 1)))) == {"candidate"}
    assert set(arms_of(halves(weights=(1, 0)))) == {"control"}


@pytest.mark.parametrize("weights", [(0.1,) * 10, (1 / 3,) * 3, (0.7, 0.1, 0.2)])
def test_rounding_leaves_no_gap_at_the_top(weights, monkeypatch):
    monkeypatch.setattr("umbel.experiments.assign.bucket", lambda _salt, _unit: np.nextafter(1.0, 0.0))
    arms = tuple(f"arm{i}" for i in range(len(weights)))
    assert Split(salt="s", arms=arms, weights=weights).arm("x") == arms[-1]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"salt": ""}, "salt"),
        ({"salt": "a\0b"}, "salt"),
        ({"arms": ("a", "a")}, "arms"),
        ({"weights": (1,)}, "weights"),
        ({"weights": (0, 0)}, "weights"),
        ({"weights": (-1, 2)}, "weights"),
        ({"weights": (float("nan"), 1)}, "weights"),
        ({"share": 1.5}, "share"),
    ],
)
def test_a_wrong_split_is_refused_by_field(changes, param):
    with pytest.raises(ConfigError) as refused:
        halves(**changes)
    assert refused.value.param == param
