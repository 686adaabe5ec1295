"""Experiments as the registry keeps them: sticky, counted by unit, read at any moment, decided with evidence."""

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import insert, update

from umbel.core.clock import now_ms
from umbel.core.errors import Conflict, GateFailed, NotFound, Unavailable, UsageError
from umbel.core.wire.experiments import DecideRequest, MetricSpec
from umbel.experiments.live import Live, answering, assign, split_of
from umbel.registry import Registry
from umbel.registry.experiments import unit_hash
from umbel.registry.models import ArmRow, ExperimentRow, ExposureRow, OutcomeRow

UNITS = [f"user-{index}" for index in range(150)]


def arms_of(registry, name, units=UNITS):
    return [assign(registry, registry.experiments.get(name), unit) for unit in units]


class Crowd:
    """Writes exposures and outcomes of many units at once, each where the experiment's own split puts it."""

    def __init__(self, registry, name, seed):
        self.registry, self.experiment = registry, registry.experiments.get(name)
        self.split = split_of(self.experiment)
        self.rng, self.size = np.random.default_rng(seed), 0

    def come(self, count, rates, lose=None, metric="thumbs"):
        """``rates``: by arm, how likely an outcome is 1. ``lose``: an arm that loses half of its exposures."""
        exposures, outcomes = [], []
        for index in range(self.size, self.size + count):
            unit = f"unit-{index}"
            arm = self.split.arm(unit)
            if arm == lose and self.rng.random() < 0.5:
                continue
            known = {"experiment_id": self.experiment.id, "unit_hash": unit_hash(self.experiment.salt, unit)}
            exposures.append({**known, "arm": arm, "at": now_ms()})
            value = float(self.rng.random() < rates[arm])
            key = f"{self.experiment.id}-{metric}-{index}"
            outcomes.append({**known, "metric": metric, "value": value, "idempotency_key": key, "at": now_ms()})
        with self.registry.database.write() as session:
            session.execute(insert(ExposureRow), exposures)
            session.execute(insert(OutcomeRow), outcomes)
        self.size += count


def finished(registry, name="tone", control=0.3, candidate=0.6, count=1200, seed=0):
    Crowd(registry, name, seed).come(count, {"control": control, "candidate": candidate})


def test_the_arms_are_pinned_when_it_is_made(live, registry, spec):
    made = live.create(spec(arms={"control": "mood", "candidate": "mood@latest"}))
    registry.aliases.promote("mood:2")
    told = live.report("tone").experiment
    assert [(arm.name, arm.version, arm.weight) for arm in told.arms] == [
        ("control", "mood:1", 0.5),
        ("candidate", "mood:3", 0.5),
    ]
    assert told == made


def test_a_unit_keeps_its_arm_over_restarts(live, registry, settings, spec):
    live.create(spec())
    before = arms_of(registry, "tone", UNITS[:60])
    with Registry.open(settings) as again:
        assert arms_of(again, "tone", UNITS[:60]) == before
    assert {"control", "candidate"} == set(before)


def test_a_ramp_lets_units_in_and_moves_nobody(live, registry, spec):
    live.create(spec(share=0.2, salt="a"))
    at_first = dict(zip(UNITS, arms_of(registry, "tone"), strict=True))
    inside = {unit: arm for unit, arm in at_first.items() if arm}
    assert 0.1 < len(inside) / len(UNITS) < 0.3
    live.ramp("tone", 0.7)
    later = dict(zip(UNITS, arms_of(registry, "tone"), strict=True))
    assert {unit: later[unit] for unit in inside} == inside
    assert sum(arm is not None for arm in later.values()) > 2 * len(inside)


def test_who_was_in_stays_in_when_the_ramp_goes_back(live, registry, spec):
    live.create(spec(salt="a"))
    before = arms_of(registry, "tone", UNITS[:50])
    live.ramp("tone", 0.0)
    assert arms_of(registry, "tone", UNITS[:50]) == before
    assert arms_of(registry, "tone", ["a new one"]) == [None]


def test_the_first_arm_wins_over_weights_that_were_changed_behind_our_back(live, registry, spec):
    live.create(spec(salt="a"))
    before = arms_of(registry, "tone", UNITS[:80])
    with registry.database.write() as session:
        session.execute(update(ArmRow).where(ArmRow.name == "candidate").values(weight=1e9))
    assert split_of(registry.experiments.get("tone")).arm(UNITS[before.index("control")]) == "candidate"
    assert arms_of(registry, "tone", UNITS[:80]) == before


def test_two_experiments_split_the_same_units_independently(live, registry, spec):
    splits = []
    for name in ("tone", "length"):
        live.create(spec(name))
        splits.append(split_of(registry.experiments.get(name)))
    both = np.array([[split.arm(f"user-{index}") == "candidate" for split in splits] for index in range(8000)])
    table = [[(both == [a, b]).all(axis=1).sum() for b in (0, 1)] for a in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > 1e-4
    assert abs(both[:, 0].mean() - 0.5) < 0.03


def test_units_are_split_by_their_weights(live, registry, spec):
    live.create(spec(weights=[0.9, 0.1]))
    split = split_of(registry.experiments.get("tone"))
    taken = sum(split.arm(f"user-{index}") == "candidate" for index in range(8000))
    assert stats.binomtest(taken, 8000, 0.1).pvalue > 1e-4


def test_the_report_counts_units_and_says_what_may_be_done(live, registry, spec):
    live.create(spec())
    finished(registry)
    told = live.report("tone")
    assert sum(told.sample_ratio.observed.values()) == 1200
    effect = told.effects[0]
    assert (effect.metric, effect.arm, effect.verdict) == ("thumbs", "candidate", "better")
    assert effect.low < 0.3 < effect.high
    assert told.winner == "candidate"
    assert told.sentence.endswith("It is safe to stop: promote candidate.")
    assert [one.metric for one in told.effects] == ["thumbs", "error_rate", "time_to_first_token"]


def test_a_late_outcome_counts_even_after_the_experiment_was_stopped(live, registry, spec):
    live.create(spec())
    arm = assign(registry, registry.experiments.get("tone"), "ada")
    live.stop("tone")
    registry.experiments.outcome(name="tone", unit="ada", metric="thumbs", value=1.0, idempotency_key="k")
    effect = live.report("tone").effects[0]
    assert (effect.n, effect.n_control) == ((1, 0) if arm == "candidate" else (0, 1))


def test_a_hundred_looks_at_an_aa_test_through_the_registry_find_no_winner_where_a_z_test_does(live, registry, spec):
    """tests/experiments/test_peeking.py has the thousands of runs; here the same goes through exposures, outcomes,
    tallies and reports as they are kept."""
    false, by_z = 0, 0
    for run in range(4):
        name = f"aa-{run}"
        live.create(spec(name, arms={"control": "mood:1", "candidate": "mood:1"}, aa=True, salt=name))
        crowd, called, called_by_z = Crowd(registry, name, run), False, False
        for _ in range(100):
            crowd.come(20, {"control": 0.4, "candidate": 0.4})
            effect = live.report(name).effects[0]
            called |= effect.verdict in ("better", "worse")
            called_by_z |= abs(z_score(effect)) > 1.96
        false, by_z = false + called, by_z + called_by_z
    assert false == 0
    assert by_z > 0


def z_score(effect):
    if not (effect.n and effect.n_control):
        return 0.0
    pooled = (effect.n * effect.mean + effect.n_control * effect.mean_control) / (effect.n + effect.n_control)
    error = np.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / effect.n + 1 / effect.n_control))
    return effect.difference / error


def test_deciding_promotes_the_winner_with_the_experiment_as_evidence(live, registry, spec):
    made = live.create(spec())
    finished(registry)
    told = live.decide("tone", DecideRequest())
    assert (told.promoted.origin, told.promoted.target) == (1, 2)
    assert registry.resolve("mood").number == 2
    last = registry.aliases.history("mood", "champion")[-1]
    assert (last.evidence, last.actor) == (made.id, "ada")
    assert last.reason.startswith("candidate is better than control by thumbs")
    kept = told.experiment.decision
    assert (kept["winner"], kept["evidence"]["forced"]) == ("candidate", False)
    assert kept["evidence"]["effects"][0]["low"] > 0
    assert answering(registry.experiments.get("tone")).number == 2


def test_a_control_that_wins_stays_champion(live, registry, spec):
    live.create(spec())
    finished(registry, control=0.6, candidate=0.3)
    told = live.decide("tone", DecideRequest())
    assert told.experiment.decision["winner"] == "control"
    assert (told.promoted.origin, told.promoted.target) == (1, 1)
    assert len(registry.aliases.history("mood")) == 1


def test_a_stopped_experiment_can_still_be_decided_and_need_not_promote(live, registry, spec):
    live.create(spec())
    finished(registry)
    live.stop("tone", "enough")
    told = live.decide("tone", DecideRequest(promote=False))
    assert told.promoted is None
    assert registry.resolve("mood").number == 1
    with pytest.raises(Conflict):
        live.decide("tone", DecideRequest())


def refusal(live, kind=GateFailed, /, **how):
    with pytest.raises(kind) as caught:
        live.decide("tone", DecideRequest(**how))
    assert live.report("tone").experiment.status == "running"
    assert live.registry.resolve("mood").number == 1
    return caught.value


def test_nothing_is_decided_before_there_is_a_result(live, registry, spec):
    live.create(spec())
    assert "too early" in refusal(live).message
    finished(registry, candidate=0.32, count=400)
    error = refusal(live)
    assert error.code == "undecided"
    assert error.message.startswith("cannot tell candidate from control")
    assert "--force" in error.hint


def test_force_decides_all_the_same_and_leaves_the_reason(live, registry, spec):
    live.create(spec())
    told = live.decide("tone", DecideRequest(force=True, winner="candidate", reason="half the cost"))
    assert told.experiment.decision["evidence"]["forced"]
    assert registry.aliases.history("mood")[-1].reason == "half the cost"


@pytest.mark.parametrize("reason", [None, "because"])
def test_force_without_a_winner_is_refused_with_the_arms(live, spec, reason):
    live.create(spec())
    error = refusal(live, UsageError, force=True, reason=reason)
    assert error.code == "missing_winner"
    assert "control or candidate" in error.hint


def test_another_winner_than_the_outcomes_show_needs_force(live, registry, spec):
    live.create(spec())
    finished(registry)
    assert refusal(live, winner="control").code == "another_winner"
    with pytest.raises(NotFound):
        live.decide("tone", DecideRequest(force=True, winner="nope", reason="x"))


def test_a_broken_split_withholds_results_and_cannot_be_forced(live, registry, spec):
    live.create(spec())
    Crowd(registry, "tone", 0).come(1200, {"control": 0.3, "candidate": 0.9}, lose="candidate")
    told = live.report("tone")
    assert told.withheld
    assert told.effects == []
    assert told.winner is None
    assert told.sentence.startswith("results are withheld")
    assert refusal(live).code == "sample_ratio_mismatch"
    assert refusal(live, force=True, winner="candidate", reason="I insist").code == "sample_ratio_mismatch"


def test_a_winner_that_fails_more_often_is_not_decided_without_force(live, registry, spec):
    live.create(spec())
    crowd = Crowd(registry, "tone", 0)
    crowd.come(1200, {"control": 0.3, "candidate": 0.7})
    fail(registry, crowd, {"control": 0.01, "candidate": 0.2})
    told = live.report("tone")
    assert told.winner == "candidate"
    assert told.warnings[0].startswith("candidate is worse by error_rate")
    assert refusal(live).code == "guardrail_worse"
    live.decide("tone", DecideRequest(force=True, winner="candidate", reason="errors were ours"))


def fail(registry, crowd, rates):
    rng = np.random.default_rng(9)
    rows = []
    for index in range(crowd.size):
        unit = f"unit-{index}"
        known = {"experiment_id": crowd.experiment.id, "unit_hash": unit_hash(crowd.experiment.salt, unit)}
        value = float(rng.random() < rates[crowd.split.arm(unit)])
        rows.append({**known, "metric": "error_rate", "value": value, "idempotency_key": f"e-{index}", "at": 0})
    with registry.database.write() as session:
        session.execute(insert(OutcomeRow), rows)


def test_a_champion_that_was_not_tested_is_not_replaced(live, registry, spec):
    live.create(spec())
    finished(registry)
    registry.aliases.promote("mood:3")
    with pytest.raises(Conflict) as caught:
        live.decide("tone", DecideRequest())
    assert caught.value.code == "champion_untested"
    assert live.report("tone").experiment.status == "running"


def test_an_aa_test_is_read_but_never_decided(live, registry, spec):
    live.create(spec(arms={"control": "mood:1", "again": "mood:1"}, aa=True))
    Crowd(registry, "tone", 0).come(1200, {"control": 0.3, "again": 0.6})  # arms that are not treated alike
    told = live.report("tone")
    assert told.winner is None
    assert told.sentence.startswith("A/A test: the arms are one version, yet again wins by thumbs.")
    assert refusal(live).code == "aa_test"
    assert refusal(live, force=True, winner="again", reason="x").code == "aa_test"


def test_less_is_better_where_it_was_said_so(live, registry, spec):
    live.create(spec(metrics=(MetricSpec(name="complaints", higher_is_better=False),)))
    Crowd(registry, "tone", 0).come(1200, {"control": 0.6, "candidate": 0.3}, metric="complaints")
    assert live.report("tone").winner == "candidate"


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"arms": {"control": "mood:1", "candidate": "mood:9"}}, NotFound, "version_not_found"),
        ({"arms": {"control": "mood:1", "candidate": "nope:1"}}, NotFound, "adapter_not_found"),
        ({"arms": {"control": "mood:1", "candidate": "mood:1"}}, UsageError, "same_version"),
        ({"arms": {"control": "mood:1", "candidate": "mood:2"}, "aa": True}, UsageError, "not_one_version"),
        ({"name": "mood"}, Conflict, "name_taken"),
        ({"name": "exp-1"}, UsageError, "invalid_name"),
        ({"name": "Tone"}, UsageError, "invalid_name"),
        ({"arms": {"Control!": "mood:1", "candidate": "mood:2"}}, UsageError, "invalid_name"),
    ],
)
def test_what_makes_no_experiment_is_refused(live, spec, fields, error, code):
    with pytest.raises(error) as caught:
        live.create(spec(**fields))
    assert caught.value.code == code
    assert list(live.list()) == []


def test_a_taken_name_is_a_conflict(live, spec):
    live.create(spec())
    with pytest.raises(Conflict) as caught:
        live.create(spec())
    assert caught.value.code == "name_taken"


def test_a_yanked_version_is_no_arm(live, registry, spec):
    registry.versions.yank("mood:2", reason="leaks")
    with pytest.raises(Unavailable):
        live.create(spec())


def test_arms_must_answer_the_same_question(live, publish_as, spec):
    publish_as("ranks", output_head="regress")
    publish_as("moods", labels=("a", "b", "c"))
    for model, what in (("ranks:1", "output_head"), ("moods:1", "labels")):
        with pytest.raises(UsageError, match=f"differ in {what}") as caught:
            live.create(spec(arms={"control": "mood:1", "candidate": model}))
        assert caught.value.code == "not_comparable"
        assert "<" not in caught.value.message  # words, no Python
        assert "(" not in caught.value.message.partition(f"differ in {what}")[2]


def test_a_split_of_a_newer_hash_is_not_guessed_at(live, registry, spec):
    live.create(spec())
    with registry.database.write() as session:
        session.execute(update(ExperimentRow).values(hash_version=2))
    with pytest.raises(Unavailable) as caught:
        assign(registry, registry.experiments.get("tone"), "ada")
    assert caught.value.code == "unknown_hash_version"


def test_what_answers_where_nobody_is_assigned_is_the_control_until_there_is_a_winner(live, registry, spec):
    live.create(spec())
    live.stop("tone")
    assert answering(registry.experiments.get("tone")).number == 1
    live.decide("tone", DecideRequest(force=True, winner="candidate", reason="x", promote=False))
    assert answering(registry.experiments.get("tone")).number == 2


def test_the_list_is_newest_first_and_can_be_filtered(live, spec):
    for name in ("one", "two"):
        live.create(spec(name))
    live.stop("one")
    assert {one.name for one in live.list()} == {"one", "two"}
    assert [one.name for one in live.list("running")] == ["two"]


def test_who_did_what_is_in_the_audit_log(registry, spec):
    live = Live(registry, "eve")
    live.create(spec())
    live.ramp("tone", 0.5)
    live.stop("tone", "why not")
    assert [(entry.action, entry.actor) for entry in registry.audit.list(target="tone")] == [
        ("experiment.stopped", "eve"),
        ("experiment.ramp", "eve"),
        ("experiment.create", "eve"),
    ]
