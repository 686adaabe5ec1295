import pytest
from pydantic import ValidationError

from umbel.core.wire.experiments import ArmSpec, DecideRequest, ExperimentSpec, MetricSpec


def spec(arms=("control", "candidate"), weights=(None, None), metrics=("thumbs",), **fields):
    return ExperimentSpec(
        name="tone",
        arms=[ArmSpec(name=arm, model="mood:1", weight=weight) for arm, weight in zip(arms, weights, strict=True)],
        metrics=[MetricSpec(name=metric) for metric in metrics],
        **fields,
    )


def test_arms_without_weights_share_alike():
    assert spec().weights == {"control": 0.5, "candidate": 0.5}
    assert spec(weights=(0.9, 0.1)).weights == {"control": 0.9, "candidate": 0.1}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"arms": ("control",), "weights": (None,)}, "at least 2"),
        ({"weights": [0.5, 0.6]}, "sum to 1.1, not to 1"),
        ({"weights": [0.5, None]}, "2 arms but 1 weights"),
        ({"weights": [0.0, 1.0]}, "greater than 0"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"metrics": ("thumbs", "thumbs")}, "'thumbs' twice"),
        ({"metrics": ("error_rate",)}, "measured by the server itself"),
        ({"metrics": ()}, "at least 1"),
        ({"metrics": ("a b",)}, "pattern"),
    ],
)
def test_a_specification_that_cannot_be_is_refused_before_anything_is_asked(fields, told):
    with pytest.raises(ValidationError, match=told):
        spec(**fields)


def test_an_arms_name_stands_for_one_arm():
    with pytest.raises(ValidationError, match="'a' twice"):
        spec(arms=("a", "a"))


def test_force_without_a_reason_is_refused():
    with pytest.raises(ValidationError, match="needs a reason"):
        DecideRequest(force=True, winner="candidate")
