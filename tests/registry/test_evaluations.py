import pytest

from umbel.core.errors import NotFound, UsageError
from umbel.registry.records import EvalItem

SUITE = "sha256:" + "5" * 64


def items(*scores):
    return [EvalItem(item=f"i{index}", metric="correct", score=score) for index, score in enumerate(scores)]


def test_every_item_of_an_evaluation_is_kept(registry, publish):
    publish()
    given = [
        EvalItem(item="i2", metric="correct", score=1.0, output="good", cluster="doc1"),
        EvalItem(item="i1", metric="correct", score=0.0),
        EvalItem(item="i1", metric="log_loss", score=0.3),
    ]
    saved = registry.evaluations.save(
        "sentiment", suite=SUITE, params={"temperature": 0}, summary={"accuracy": 0.5}, items=given, actor="ada"
    )
    assert registry.evaluations.get(saved.id) == saved
    assert (saved.version, saved.n_items, saved.created_by) == (registry.resolve("sentiment"), 2, "ada")
    assert registry.evaluations.items(saved.id) == (given[1], given[0], given[2])
    assert registry.evaluations.items(saved.id, metric="log_loss") == (given[2],)


def test_evaluations_are_found_by_what_they_judged(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    first = registry.evaluations.save("sentiment:1", suite=SUITE, summary={}, items=items(1, 0))
    second = registry.evaluations.save("sentiment:2", suite=SUITE, summary={}, items=items(1, 1))
    assert {told.id for told in registry.evaluations.list(name="sentiment")} == {first.id, second.id}
    assert [told.id for told in registry.evaluations.list(name="sentiment", number=2)] == [second.id]
    assert registry.evaluations.list(suite="sha256:" + "6" * 64) == ()


def test_items_outlive_the_version_that_they_judged(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    saved = registry.evaluations.save("sentiment:2", suite=SUITE, summary={}, items=items(1, 0))
    registry.versions.remove("sentiment:2")
    registry.gc(dry_run=False, grace_ms=-1)
    assert [item.score for item in registry.evaluations.items(saved.id)] == [1, 0]


def test_an_evaluation_is_kept_whole_or_not_at_all(registry, publish):
    publish()
    with pytest.raises(UsageError):
        registry.evaluations.save("sentiment", suite=SUITE, summary={}, items=items(1, float("nan")))
    with pytest.raises(Exception, match=r"(?i)unique"):
        registry.evaluations.save("sentiment", suite=SUITE, summary={}, items=items(1) * 2)
    assert registry.evaluations.list() == ()


def test_an_unknown_evaluation_is_named(registry):
    with pytest.raises(NotFound, match="eval-nope"):
        registry.evaluations.items("eval-nope")
