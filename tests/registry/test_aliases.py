from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.exc import IntegrityError

from umbel.core.errors import Conflict, NotFound, Unavailable, UsageError
from umbel.registry import Registry
from umbel.registry.aliases import ABSENT
from umbel.registry.models import AliasRow


@pytest.fixture
def three(publish):
    for weights in (b"1", b"2", b"3"):
        publish(weights=weights)


@pytest.mark.usefixtures("three")
def test_promote_moves_the_bare_name_and_tells_from_where(registry):
    event = registry.aliases.promote("sentiment:2", actor="ada", reason="better", evidence="eval-1")
    assert (event.origin, event.target, event.actor, event.evidence) == (1, 2, "ada", "eval-1")
    assert registry.resolve("sentiment").number == 2
    assert registry.versions.get("sentiment:2").aliases == ("champion",)


@pytest.mark.usefixtures("three")
def test_every_move_is_in_the_history_in_order(registry):
    registry.aliases.set("sentiment:2", "canary")
    registry.aliases.promote("sentiment@canary")
    registry.aliases.rollback("sentiment")
    registry.aliases.remove("sentiment", "canary")
    told = [(event.alias, event.kind, event.origin, event.target) for event in registry.aliases.history("sentiment")]
    assert told == [
        ("champion", "set", None, 1),
        ("canary", "set", None, 2),
        ("champion", "set", 1, 2),
        ("champion", "rollback", 2, 1),
        ("canary", "remove", 2, None),
    ]
    assert len(registry.aliases.history("sentiment", "canary")) == 2


@pytest.mark.usefixtures("three")
def test_a_move_to_where_it_is_leaves_no_event(registry):
    event = registry.aliases.promote("sentiment:1")
    assert event.origin == event.target == 1
    assert len(registry.aliases.history("sentiment")) == 1


@pytest.mark.usefixtures("three")
def test_rolling_back_twice_goes_back_twice(registry):
    registry.aliases.promote("sentiment:2")
    registry.aliases.promote("sentiment:3")
    assert registry.aliases.rollback("sentiment").target == 2
    assert registry.aliases.rollback("sentiment").target == 1
    with pytest.raises(Conflict) as caught:
        registry.aliases.rollback("sentiment")
    assert caught.value.code == "nothing_to_roll_back"


@pytest.mark.usefixtures("three")
def test_rollback_passes_over_what_cannot_answer_any_more(registry):
    registry.aliases.promote("sentiment:2")
    registry.aliases.promote("sentiment:3")
    registry.versions.yank("sentiment:2", reason="bad")
    assert registry.aliases.rollback("sentiment").target == 1


@pytest.mark.usefixtures("three")
def test_rollback_works_while_the_champion_is_yanked(registry):
    registry.aliases.promote("sentiment:2")
    registry.versions.yank("sentiment:2", reason="bad")
    registry.aliases.rollback("sentiment")
    assert registry.resolve("sentiment").number == 1


@pytest.mark.usefixtures("three")
def test_a_move_that_expects_another_place_is_refused_and_changes_nothing(registry):
    registry.aliases.promote("sentiment:2", expect=1)
    with pytest.raises(Conflict, match="sentiment:2") as caught:
        registry.aliases.promote("sentiment:3", expect=1)
    assert caught.value.code == "alias_moved"
    with pytest.raises(Conflict):
        registry.aliases.rollback("sentiment", expect=3)
    with pytest.raises(Conflict):
        registry.aliases.remove("sentiment", "champion", expect=3)
    assert registry.resolve("sentiment").number == 2


@pytest.mark.usefixtures("three")
def test_an_alias_can_be_made_only_if_it_is_absent(registry):
    registry.aliases.set("sentiment:2", "canary", expect=ABSENT)
    with pytest.raises(Conflict):
        registry.aliases.set("sentiment:3", "canary", expect=ABSENT)


@pytest.mark.usefixtures("three")
def test_of_many_that_expect_the_same_place_one_wins(registry, settings):
    def promote(number):
        with Registry.open(settings) as mine:
            try:
                return mine.aliases.promote(f"sentiment:{number}", expect=1).target
            except Conflict:
                return None

    with ThreadPoolExecutor(6) as pool:
        won = [number for number in pool.map(promote, [2, 3] * 3) if number]
    assert won == [registry.resolve("sentiment").number]


@pytest.mark.parametrize("alias", ["latest", "3", "v3", "Canary", "a/b", ""])
def test_words_that_would_be_taken_for_a_version_cannot_be_aliases(registry, publish, alias):
    publish()
    with pytest.raises(UsageError) as caught:
        registry.aliases.set("sentiment:1", alias)
    assert caught.value.code == "invalid_alias"


def test_an_alias_needs_a_version_that_is_said(registry, publish):
    publish()
    with pytest.raises(UsageError, match="which version"):
        registry.aliases.set("sentiment", "canary")


def test_an_alias_cannot_point_at_what_cannot_answer(registry, publish):
    publish(weights=b"1")
    digest = publish(weights=b"2").digest
    with pytest.raises(NotFound):
        registry.aliases.set("sentiment:9", "canary")
    registry.versions.yank("sentiment:2", reason="bad")
    for ref in ("sentiment:2", f"sentiment@{digest}"):
        with pytest.raises(Unavailable) as caught:
            registry.aliases.set(ref, "canary")
        assert caught.value.code == "version_yanked"


def test_the_database_itself_refuses_an_alias_to_nowhere(registry, publish):
    publish()
    row = AliasRow(adapter_id=1, alias="canary", number=9, updated_by="x", updated_at=0)
    with pytest.raises(IntegrityError), registry.database.write() as session:
        session.add(row)


def test_a_version_that_an_alias_needs_cannot_be_deleted(registry, publish):
    publish()
    with pytest.raises(Conflict, match="champion") as caught:
        registry.versions.remove("sentiment:1")
    assert caught.value.code == "version_in_use"


class AliasMachine(RuleBasedStateMachine):
    """Random moves against a model that is a dictionary and a stack."""

    registry: Registry
    round = 0

    @initialize()
    def begin(self):
        AliasMachine.round += 1
        self.name = f"task{AliasMachine.round}"
        self.stack = [1]
        for number in (1, 2, 3):
            self.publish(self.name, weights=f"{self.name}-{number}".encode())

    @rule(number=st.integers(1, 3))
    def promote(self, number):
        self.registry.aliases.promote(f"{self.name}:{number}")
        if number != self.stack[-1]:
            self.stack.append(number)

    @rule()
    def rollback(self):
        if len(self.stack) > 1:
            self.stack.pop()
            assert self.registry.aliases.rollback(self.name).target == self.stack[-1]
        else:
            with pytest.raises(Conflict):
                self.registry.aliases.rollback(self.name)

    @invariant()
    def the_bare_name_is_where_the_model_says(self):
        assert self.registry.resolve(self.name).number == self.stack[-1]
        assert self.registry.aliases.history(self.name)[-1].target == self.stack[-1]


def test_any_sequence_of_promotions_and_rollbacks_is_a_stack(registry, publish):
    class Machine(AliasMachine):
        pass

    Machine.registry, Machine.publish = registry, staticmethod(publish)
    limits = settings(
        max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Machine, settings=limits)
