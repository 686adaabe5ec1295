import json
from dataclasses import asdict

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.experiments import ArmCounts, Metric, Sums, monitor

METRICS = (Metric("thumbs_up"), Metric("error_rate", higher_is_better=False))
HALVES = {"control": 0.5, "candidate": 0.5}


def arm(exposed, thumbs=None, errors=None):
    sums = {"thumbs_up": thumbs, "error_rate": errors}
    return ArmCounts(exposed, {name: Sums.of(values) for name, values in sums.items() if values is not None})


def share(n, ones):
    return np.repeat([1.0, 0.0], [ones, n - ones])


def read(arms, **changes):
    weights = dict.fromkeys(arms, 1.0)
    return monitor(
        arms, **{"weights": weights, "metrics": METRICS, "primary": "thumbs_up", "control": "control", **changes}
    )


def test_a_clear_gain_is_a_winner_that_may_be_promoted():
    found = read({"control": arm(5000, share(5000, 2000)), "candidate": arm(5010, share(5010, 2600))})
    assert found.winner == "candidate"
    assert not found.withheld
    assert found.decision.startswith("candidate is better than control by thumbs_up: +0.119 (always-valid interval +0.")
    assert found.decision.endswith("It is safe to stop: promote candidate.")


def test_a_clear_loss_keeps_the_control():
    found = read({"control": arm(5000, share(5000, 2600)), "candidate": arm(5010, share(5010, 2000))})
    assert found.winner == "control"
    assert found.decision.endswith("It is safe to stop: keep control.")


def test_where_lower_is_better_fewer_errors_win():
    found = read(
        {"control": arm(3000, errors=share(3000, 600)), "candidate": arm(3000, errors=share(3000, 200))},
        primary="error_rate",
    )
    assert found.winner == "candidate"


def test_an_open_question_is_said_to_be_open():
    found = read({"control": arm(2000, share(2000, 800)), "candidate": arm(2000, share(2000, 820))})
    assert found.winner is None
    assert found.decision.startswith("cannot tell candidate from control by thumbs_up yet: +0.01 (")


def test_a_difference_that_a_z_test_would_call_is_not_yet_a_winner():
    a, b = share(2000, 800), share(2000, 870)
    z = (b.mean() - a.mean()) / np.sqrt(a.var() / 2000 + b.var() / 2000)
    assert z > 2
    assert read({"control": arm(2000, a), "candidate": arm(2000, b)}).winner is None


def test_a_mismatch_withholds_every_result():
    found = read({"control": arm(5000, share(5000, 2000)), "candidate": arm(4400, share(4400, 2600))})
    assert found.sample_ratio.tripped
    assert found.withheld
    assert found.effects == ()
    assert found.winner is None
    assert "results are withheld" in found.decision
    assert "candidate 4,400 (expected 4,700)" in found.decision


def test_unequal_arms_are_sound_when_the_weights_say_so():
    found = read(
        {"control": arm(9000, share(9000, 10)), "candidate": arm(1000, share(1000, 1))},
        weights={"control": 90, "candidate": 10},
    )
    assert not found.sample_ratio.tripped
    assert found.sample_ratio.expected == pytest.approx({"control": 9000, "candidate": 1000})


def test_a_gross_mismatch_still_fits_json():
    found = read({"control": arm(10**7), "candidate": arm(10**6)})
    assert json.dumps(asdict(found), allow_nan=False)
    assert found.withheld


def test_no_interval_before_each_arm_has_enough_outcomes():
    found = read({"control": arm(60, share(60, 3)), "candidate": arm(60, share(49, 46))})
    effect = found.effects[0]
    assert (effect.verdict, effect.interval, effect.difference) == ("too early", None, pytest.approx(46 / 49 - 3 / 60))
    assert found.decision.startswith(
        "too early to compare candidate with control by thumbs_up: 49 outcomes of candidate, 60 of control"
    )


def test_an_experiment_that_nobody_has_entered_is_too_early():
    found = read({"control": arm(0), "candidate": arm(0)})
    assert found.decision.startswith("too early")
    assert found.effects[0].mean is None


def test_outcomes_without_spread_are_too_early_not_certain():
    found = read({"control": arm(100, share(100, 100)), "candidate": arm(100, share(100, 100))})
    assert found.effects[0].verdict == "too early"


def test_the_secondary_metric_informs_but_does_not_decide():
    found = read(
        {
            "control": arm(3000, share(3000, 1200), share(3000, 100)),
            "candidate": arm(3000, share(3000, 1200), share(3000, 500)),
        }
    )
    assert {effect.metric: effect.verdict for effect in found.effects} == {
        "thumbs_up": "undecided",
        "error_rate": "worse",
    }
    assert found.winner is None


def test_an_arm_that_does_not_answer_cannot_win():
    """Only its satisfied users report: the mean is high, and so is the number of the silent."""
    found = read({"control": arm(5000, share(4000, 2000)), "candidate": arm(5000, share(2500, 2000))})
    assert found.effects[0].verdict == "better"
    assert found.effects[0].missing_differs
    assert found.winner is None
    assert "find out first who does not answer" in found.decision


def test_the_best_of_several_better_arms_wins():
    found = read({name: arm(4000, share(4000, ones)) for name, ones in (("control", 1000), ("x", 1500), ("y", 2000))})
    assert found.winner == "y"


def test_more_arms_make_each_interval_wider():
    two = read({"control": arm(4000, share(4000, 1000)), "x": arm(4000, share(4000, 1100))})
    three = read({name: arm(4000, share(4000, ones)) for name, ones in (("control", 1000), ("x", 1100), ("y", 1000))})
    assert three.effects[0].interval.low < two.effects[0].interval.low


def test_three_equal_arms_watched_closely_rarely_show_a_winner():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        values = {name: (rng.random(3000) < 0.3).astype(float) for name in ("control", "x", "y")}
        looks = (read({name: arm(n, each[:n]) for name, each in values.items()}) for n in range(100, 3001, 100))
        wrong += any(look.winner is not None for look in looks)
    assert wrong <= 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"control": "nope"}, "its control 'nope'"),
        ({"weights": {"control": 1.0}}, "weights are for"),
        ({"primary": "nope"}, "primary metric 'nope'"),
        ({"metrics": (Metric("other"),), "primary": "other"}, "unknown metric 'thumbs_up'"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        read({"control": arm(100, share(100, 50)), "candidate": arm(100, share(100, 50))}, **changes)


def test_several_outcomes_of_one_unit_are_refused():
    with pytest.raises(ConfigError, match="only 50 exposed units"):
        read({"control": arm(50, share(100, 50)), "candidate": arm(50, share(50, 25))})
