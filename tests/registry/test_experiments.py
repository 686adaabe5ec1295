from concurrent.futures import ThreadPoolExecutor

import pytest

from umbel.core.errors import Conflict, NotFound, Unavailable, UsageError
from umbel.registry.outcomes import Outcome
from umbel.registry.records import ExperimentStatus


@pytest.fixture
def trial(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    arms = {"old": "sentiment", "new": "sentiment:2"}
    return registry.experiments.create("trial", arms=arms, metric="thumbs", weights={"new": 3})


def test_an_experiment_pins_its_arms_to_versions(registry, trial):
    registry.aliases.promote("sentiment:2")
    told = registry.experiments.get("trial")
    assert told == trial
    assert [(arm.name, arm.version.number, arm.weight) for arm in told.arms] == [("old", 1, 1.0), ("new", 2, 3.0)]


def test_two_experiments_have_different_salts(registry, trial):
    other = registry.experiments.create("other", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="m")
    assert other.salt != trial.salt
    assert [told.name for told in registry.experiments.list(limit=10).items if told.name == "other"] == ["other"]


@pytest.mark.usefixtures("trial")
def test_the_first_assignment_of_a_unit_wins(registry):
    assert registry.experiments.assigned("trial", "ada") is None
    assert registry.experiments.expose("trial", "ada", "old") == "old"
    assert registry.experiments.expose("trial", "ada", "new") == "old"
    assert registry.experiments.assigned("trial", "ada") == "old"


@pytest.mark.usefixtures("trial")
def test_a_race_for_one_unit_has_one_winner(registry):
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda arm: registry.experiments.expose("trial", "ada", arm), ["old", "new"] * 8))
    assert len(set(told)) == 1
    assert sum(counts.exposed for counts in registry.experiments.counts("trial")) == 1


def test_a_unit_is_kept_as_a_hash_only(registry, trial):
    registry.experiments.expose("trial", "ulrike@example.org", "old")
    with registry.database.engine.connect() as connection:
        rows = str(connection.exec_driver_sql("SELECT * FROM exposures").all())
    assert "ulrike" not in rows, "a name that no hash in hex can hold"
    assert trial.id in rows


@pytest.mark.usefixtures("trial")
def test_counts_are_over_units_and_their_means(registry):
    for unit, arm, values in [("u1", "old", [1, 0]), ("u2", "old", [1]), ("u3", "new", [1, 1, 1]), ("u4", "new", [])]:
        registry.experiments.expose("trial", unit, arm)
        for index, value in enumerate(values):
            key = f"{unit}-{index}"
            registry.experiments.outcome(name="trial", unit=unit, metric="thumbs", value=value, idempotency_key=key)
    old, new = registry.experiments.counts("trial")
    assert (old.arm.name, old.exposed, new.arm.name, new.exposed) == ("old", 2, "new", 2)
    thumbs = old.metrics["thumbs"]
    assert (thumbs.n, thumbs.total, thumbs.total_squares) == (2, 1.5, 1.25)
    assert new.metrics["thumbs"].n == 1
    assert thumbs.zero_or_one  # each outcome is, though u1's mean is not
    for value in (0.5, 2, -1):
        unit = f"more-{value}"
        registry.experiments.expose("trial", unit, "new")
        key = {"name": "trial", "unit": unit, "idempotency_key": unit}
        registry.experiments.outcome(metric=f"m{value}", value=value, **key)
        assert not registry.experiments.counts("trial")[1].metrics[f"m{value}"].zero_or_one


@pytest.mark.usefixtures("trial")
def test_feedback_may_name_the_request_and_counts_once(registry):
    registry.experiments.expose("trial", "ada", "old", request_id="req-1")
    outcome = {"request_id": "req-1", "metric": "thumbs", "value": 1.0, "idempotency_key": "k"}
    assert registry.experiments.outcome(**outcome)
    assert not registry.experiments.outcome(**outcome)
    with pytest.raises(Conflict) as caught:
        registry.experiments.outcome(**outcome | {"value": 0.0})
    assert caught.value.code == "idempotency_mismatch"
    assert registry.experiments.counts("trial")[0].metrics["thumbs"].total == 1.0


@pytest.mark.usefixtures("trial")
def test_an_outcome_needs_an_exposure(registry):
    for where in ({"request_id": "req-9"}, {"name": "trial", "unit": "eve"}, {}):
        with pytest.raises(NotFound) as caught:
            registry.experiments.outcome(metric="m", value=1.0, idempotency_key="k", **where)
        assert caught.value.code == "exposure_not_found"
    with pytest.raises(UsageError):
        registry.experiments.outcome(name="trial", unit="x", metric="m", value=float("nan"), idempotency_key="k")


@pytest.mark.usefixtures("trial")
def test_a_stopped_experiment_exposes_nobody_but_still_hears(registry):
    registry.experiments.expose("trial", "ada", "old")
    registry.experiments.stop("trial")
    with pytest.raises(Conflict) as caught:
        registry.experiments.expose("trial", "eve", "old")
    assert caught.value.code == "experiment_stopped"
    assert registry.experiments.outcome(name="trial", unit="ada", metric="m", value=1.0, idempotency_key="k")
    with pytest.raises(Conflict):
        registry.experiments.stop("trial")


@pytest.mark.usefixtures("trial")
def test_a_decision_is_kept_with_its_evidence_and_moves_no_alias(registry):
    with pytest.raises(NotFound, match="nope"):
        registry.experiments.decide("trial", winner="nope", evidence={})
    told = registry.experiments.decide("trial", winner="new", evidence={"difference": 0.1}, reason="better")
    assert told.status == ExperimentStatus.DECIDED
    assert told.decision == {"winner": "new", "evidence": {"difference": 0.1}, "reason": "better"}
    assert registry.resolve("sentiment").number == 1
    with pytest.raises(Conflict):
        registry.experiments.stop("trial")


@pytest.mark.usefixtures("trial")
def test_a_running_experiment_keeps_its_versions(registry):
    with pytest.raises(Conflict, match="trial"):
        registry.versions.remove("sentiment:2")
    registry.experiments.stop("trial")
    registry.versions.remove("sentiment:2")


@pytest.mark.usefixtures("trial")
def test_a_decision_can_promote_with_the_experiment_as_evidence_all_or_nothing(registry, trial):
    registry.versions.yank("sentiment:2", reason="leaks")
    with pytest.raises(Unavailable):
        registry.experiments.decide_and_promote("trial", winner="new", evidence={})
    assert registry.experiments.get("trial").status == ExperimentStatus.RUNNING
    registry.versions.unyank("sentiment:2")
    told, moved = registry.experiments.decide_and_promote("trial", winner="new", evidence={}, actor="ada", reason="won")
    assert (told.status, moved.origin, moved.target) == (ExperimentStatus.DECIDED, 1, 2)
    last = registry.aliases.history("sentiment")[-1]
    assert (last.target, last.actor, last.reason, last.evidence) == (2, "ada", "won", trial.id)
    assert registry.experiments.get(last.evidence) == told


@pytest.mark.usefixtures("trial")
def test_a_champion_that_was_no_arm_is_not_replaced_by_an_experiment_that_says_nothing_about_it(registry, publish):
    publish(weights=b"3")
    registry.aliases.promote("sentiment:3")
    with pytest.raises(Conflict) as caught:
        registry.experiments.decide_and_promote("trial", winner="new", evidence={})
    assert caught.value.code == "champion_untested"
    assert registry.experiments.get("trial").status == ExperimentStatus.RUNNING
    registry.experiments.decide_and_promote("trial", winner="new", evidence={}, untested=True)
    assert registry.resolve("sentiment").number == 2


@pytest.mark.usefixtures("trial")
def test_a_ramp_changes_the_share_of_a_running_experiment_only(registry):
    assert registry.experiments.ramp("trial", 0.25).config["share"] == 0.25
    assert registry.experiments.get("trial").config["share"] == 0.25
    registry.experiments.stop("trial")
    with pytest.raises(Conflict):
        registry.experiments.ramp("trial", 0.5)


@pytest.mark.usefixtures("trial")
def test_keys_of_two_experiments_do_not_meet(registry):
    registry.experiments.create("other", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="m")
    for name, arm in (("trial", "old"), ("other", "a")):
        registry.experiments.expose(name, "ada", arm)
        assert registry.experiments.outcome(name=name, unit="ada", metric="m", value=1.0, idempotency_key="1")


@pytest.mark.usefixtures("trial")
def test_a_request_of_another_experiment_is_no_exposure_to_this_one(registry):
    registry.experiments.create("other", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="m")
    registry.experiments.expose("trial", "ada", "old", request_id="req-1")
    with pytest.raises(NotFound) as caught:
        registry.experiments.outcome(name="other", request_id="req-1", metric="m", value=1.0, idempotency_key="k")
    assert caught.value.code == "exposure_not_found"


@pytest.mark.usefixtures("trial")
def test_outcomes_come_in_batches_that_are_kept_whole_or_not_at_all(registry):
    registry.experiments.expose("trial", "ada", "old")
    one = Outcome(metric="m", value=1.0, idempotency_key="k", name="trial", unit="ada")
    stranger = Outcome(metric="m", value=1.0, idempotency_key="l", name="trial", unit="eve")
    with pytest.raises(NotFound):
        registry.experiments.outcomes([one, stranger])
    assert registry.experiments.counts("trial")[0].metrics == {}
    assert registry.experiments.outcomes([one, one]) == (True, False)


def test_an_experiment_that_lists_its_metrics_takes_no_others(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    arms = {"a": "sentiment:1", "b": "sentiment:2"}
    registry.experiments.create("strict", arms=arms, metric="thumbs", config={"metrics": {"thumbs": True}})
    registry.experiments.expose("strict", "ada", "a")
    with pytest.raises(UsageError, match="it measures thumbs") as caught:
        registry.experiments.outcome(name="strict", unit="ada", metric="stars", value=1.0, idempotency_key="k")
    assert caught.value.code == "unknown_metric"


@pytest.mark.usefixtures("trial")
def test_no_name_looks_like_an_id(registry):
    with pytest.raises(UsageError, match="looks like"):
        registry.experiments.create("exp-1", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="m")


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize(
    ("arms", "weights"),
    [
        ({"a": "sentiment:1"}, {}),
        ({"a": "sentiment:1", "b": "sentiment:2"}, {"b": 0}),
        ({"a": "sentiment:1", "b": "sentiment:2"}, {"c": 1}),
    ],
)
def test_arms_that_make_no_experiment_are_refused(registry, arms, weights):
    with pytest.raises(UsageError):
        registry.experiments.create("bad", arms=arms, weights=weights, metric="m")


@pytest.mark.usefixtures("trial")
def test_an_arm_must_be_able_to_answer(registry):
    registry.versions.yank("sentiment:2", reason="bad")
    with pytest.raises(Unavailable):
        registry.experiments.create("second", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="m")
    with pytest.raises(NotFound):
        registry.experiments.get("second")


@pytest.mark.usefixtures("trial")
def test_experiments_adapters_and_backbones_share_one_name_space(registry, publish):
    backbone = {"fingerprint": "sha256:" + "1" * 64, "source": "here", "config": {}}
    arms = {"a": "sentiment:1", "b": "sentiment:2"}
    registry.backbones.register(name="llama", **backbone)
    for name in ("trial", "llama"):
        with pytest.raises(Conflict) as caught:
            publish(name)
        assert caught.value.code == "name_taken"
    for name in ("sentiment", "llama", "trial"):
        with pytest.raises(Conflict):
            registry.experiments.create(name, arms=arms, metric="m")
    for name in ("sentiment", "trial"):
        with pytest.raises(Conflict):
            registry.backbones.register(name=name, **backbone | {"fingerprint": "sha256:" + "2" * 64})
    with pytest.raises(NotFound, match="an experiment"):
        registry.resolve("trial")
