import itertools

import pytest
from sqlalchemy import event, text

from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import Conflict, NotFound, UsageError
from umbel.core.settings import Settings
from umbel.registry import Registry
from umbel.registry.query import AdapterQuery, MetricRange
from umbel.registry.records import VersionState


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def zoo(request, tmp_path_factory, publisher):
    """Five adapters that differ in everything that a list can ask for, to be looked at only."""
    home = tmp_path_factory.mktemp("zoo")
    url = request.getfixturevalue("create_database")() if request.param == "postgres" else f"sqlite:///{home}/r.db"
    with Registry.open(Settings(home=home, database_url=url, store_url=str(home / "store"))) as registry:
        fill(registry, publisher(registry))
        yield registry


def fill(registry, publish):
    tag = Contract(output_head=OutputHead.TAG, labels=("A", "B"))
    publish("ant", weights=b"a", metrics={"accuracy": 0.9}, tags={"team": "red"}, description="Tiny worker")
    publish("bee", weights=b"bb" * 50, metrics={"accuracy": 0.7}, tags={"team": "blue"})
    publish("cat", weights=b"c", metrics={"accuracy": 0.8, "f1": 0.5}, tags={"team": "red", "lang": "100%_en"})
    publish("dog", weights=b"d", method="prefix", contract=tag)
    publish("eel", weights=b"e", metrics={"accuracy": 0.7})
    publish("bee", weights=b"b2", metrics={"accuracy": 0.95}, method="ia3")
    registry.aliases.set("bee:2", "canary")
    registry.versions.yank("eel:1", reason="slippery")


def names(registry, **query):
    page = registry.adapters.list(AdapterQuery(**query))
    assert registry.adapters.count(AdapterQuery(**query)) == len(page.items)
    return [adapter.name for adapter in page.items]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, "ant bee cat dog eel"),
        ({"search": "BE"}, "bee"),
        ({"search": "worker"}, "ant"),
        ({"search": "red"}, "ant cat"),
        ({"search": "%"}, "cat"),
        ({"search": "_"}, "cat"),
        ({"method": "prefix"}, "dog"),
        ({"output_head": OutputHead.TAG}, "dog"),
        ({"state": VersionState.YANKED}, "eel"),
        ({"tags": {"team": "red"}}, "ant cat"),
        ({"tags": {"team": "red", "lang": "100%_en"}}, "cat"),
        ({"backbone": "sha256:" + "0" * 64}, ""),
        ({"metrics": (MetricRange.parse("accuracy>=0.8"),)}, "ant cat"),
        ({"metrics": (MetricRange.parse("accuracy > 0.8"),)}, "ant"),
        ({"metrics": (MetricRange.parse("accuracy<0.9"), MetricRange.parse("f1<=0.5"))}, "cat"),
        ({"alias": "canary"}, "bee"),
        ({"alias": "canary", "metrics": (MetricRange.parse("accuracy>=0.95"),)}, "bee"),
        ({"method": "lora", "search": "e"}, "ant bee cat eel"),
        ({"descending": True}, "eel dog cat bee ant"),
        ({"sort": "created"}, "ant bee cat dog eel"),
        ({"sort": "metric:accuracy"}, "bee eel cat ant dog"),
        ({"sort": "metric:accuracy", "descending": True}, "ant cat eel bee dog"),
        ({"sort": "metric:f1"}, "cat ant bee dog eel"),
    ],
)
def test_a_list_holds_what_was_asked_for(zoo, query, found):
    assert names(zoo, **query) == found.split()


def test_the_shown_version_is_the_champion_or_the_asked_alias(registry, publish):
    fill(registry, publish)
    [bee] = registry.adapters.list(AdapterQuery(search="bee")).items
    assert (bee.shown.number, bee.aliases, bee.last_number) == (1, {"canary": 2, "champion": 1}, 2)
    [canary] = registry.adapters.list(AdapterQuery(alias="canary")).items
    assert canary.shown.number == 2
    registry.aliases.remove("bee", "champion")
    assert registry.adapters.get("bee").shown.number == 2
    registry.aliases.remove("bee", "canary")
    registry.versions.remove("bee:2")
    assert registry.adapters.get("bee").shown.number == 1


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["name", "created", "bytes", "metric:accuracy", "metric:f1", "metric:none"])
def test_pages_of_any_size_join_to_the_whole_list(zoo, sort, descending):
    query = AdapterQuery(sort=sort, descending=descending)
    whole = names(zoo, sort=sort, descending=descending)
    for limit in (1, 2, 3):
        assert [adapter.name for adapter in walk(zoo, query, limit)] == whole


def walk(registry, query, limit, between=lambda page: None):
    cursor = None
    while True:
        page = registry.adapters.list(query, limit=limit, cursor=cursor)
        yield from page.items
        between(page)
        cursor = page.next
        if cursor is None:
            return


@pytest.mark.parametrize("sort", ["name", "created", "bytes", "metric:accuracy"])
def test_inserts_between_pages_skip_and_repeat_nothing(registry, publish, sort):
    fill(registry, publish)
    count = itertools.count()

    def insert(page):
        if next(count) < 4:
            for name in (f"aaa{next(count)}", f"zzz{next(count)}"):
                publish(name, weights=name.encode(), metrics={"accuracy": next(count) / 7})

    seen = [adapter.name for adapter in walk(registry, AdapterQuery(sort=sort), 1, insert)]
    assert len(seen) == len(set(seen))
    assert {"ant", "bee", "cat", "dog", "eel"} <= set(seen)


def test_a_cursor_of_another_list_is_refused(zoo):
    cursor = zoo.adapters.list(limit=2).next
    for wrong in ("nonsense", "", "e30", cursor + "AAAA"):
        with pytest.raises(UsageError) as caught:
            zoo.adapters.list(limit=2, cursor=wrong)
        assert caught.value.code == "invalid_cursor"
    with pytest.raises(UsageError):
        zoo.adapters.list(AdapterQuery(search="e"), limit=2, cursor=cursor)
    with pytest.raises(UsageError):
        zoo.adapters.list(limit=0)


@pytest.mark.parametrize("bad", ["accuracy", "accuracy>=high", ">=0.8", "a b>=1"])
def test_a_metric_range_that_is_none_is_refused(bad):
    with pytest.raises(UsageError) as caught:
        MetricRange.parse(bad)
    assert caught.value.code == "invalid_metric_range"


def test_an_unknown_order_is_refused(registry):
    with pytest.raises(UsageError, match="colour"):
        registry.adapters.list(AdapterQuery(sort="colour"))


def statements(registry, work):
    seen = []

    def saw(connection, cursor, statement, parameters, context, many):
        seen.append(statement)

    event.listen(registry.database.engine, "before_cursor_execute", saw)
    try:
        work()
    finally:
        event.remove(registry.database.engine, "before_cursor_execute", saw)
    return seen


def test_a_list_costs_the_same_number_of_queries_whatever_its_length(registry, publish):
    for index in range(30):
        publish(f"task{index:02}", weights=bytes([index]), metrics={"accuracy": index / 30}, tags={"n": str(index)})
    short = statements(registry, lambda: registry.adapters.list(limit=2))
    long = statements(registry, lambda: registry.adapters.list(limit=30))
    assert len(short) == len(long) <= 8


def test_resolving_costs_one_query(registry, publish):
    publish()
    selects = [sql for sql in statements(registry, lambda: registry.resolve("sentiment@champion")) if "SELECT" in sql]
    assert len(selects) == 1


@pytest.mark.parametrize("sort", ["name", "created"])
def test_a_page_is_read_along_an_index(sqlite_settings, sort):
    """Asked of SQLite, which plans by rules; PostgreSQL plans by the size of the tables."""
    query = AdapterQuery(sort=sort)
    with Registry.open(sqlite_settings) as registry, registry.database.read() as session:
        statement = query.keyset().page(query.statement(), 50, None)
        sql = statement.compile(registry.database.engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(row[3] for row in session.execute(text(f"EXPLAIN QUERY PLAN {sql}")))
    assert "SCAN adapters USING INDEX" in plan
    assert "TEMP B-TREE" not in plan
    assert "SCAN adapter_versions" not in plan


def test_removing_an_adapter_takes_its_versions_and_aliases_but_not_its_history(registry, publish):
    publish(weights=b"1")
    registry.adapters.remove("sentiment", reason="done with it")
    assert registry.adapters.list().items == ()
    for look in (registry.resolve, registry.adapters.get):
        with pytest.raises(NotFound, match="removed"):
            look("sentiment")
    assert [event.kind for event in registry.aliases.history("sentiment")] == ["set", "remove"]
    assert publish(weights=b"2").number == 2


def test_an_adapter_that_an_experiment_needs_cannot_be_removed(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    registry.experiments.create("trial", arms={"a": "sentiment:1", "b": "sentiment:2"}, metric="accuracy")
    with pytest.raises(Conflict, match="trial"):
        registry.adapters.remove("sentiment")
    assert registry.resolve("sentiment").number == 1
    registry.experiments.stop("trial")
    registry.adapters.remove("sentiment")


def test_a_description_can_be_changed(registry, publish):
    publish()
    assert registry.adapters.describe("sentiment", "moods").description == "moods"


def test_lists_describe_an_adapter_as_its_champion_does(registry, publish):
    def published(words, weights):
        contract = Contract(output_head="classify", labels=("a", "b"), description=words)
        return publish(weights=weights, contract=contract, description=words)

    published("old words", b"1")
    published("new words", b"2")
    assert registry.adapters.get("sentiment").description == "old words"
    assert registry.versions.get("sentiment:2").contract.description == "new words"
    registry.aliases.promote("sentiment:2")
    assert registry.adapters.get("sentiment").description == "new words"
    registry.aliases.rollback("sentiment")
    assert registry.adapters.list().items[0].description == "old words"


def test_versions_are_listed_newest_first_in_pages(registry, publish):
    for number in range(1, 6):
        publish(weights=bytes([number]))
    registry.versions.remove("sentiment:3")
    page = registry.versions.list("sentiment", limit=3)
    assert [version.number for version in page.items] == [5, 4, 2]
    assert [version.number for version in registry.versions.list("sentiment", cursor=page.next, limit=3).items] == [1]
    deleted = registry.versions.list("sentiment", state=VersionState.DELETED)
    assert [version.number for version in deleted.items] == [3]


def test_a_diff_names_what_differs_and_nothing_else(registry, publish):
    publish(weights=b"1", config={"rank": 8, "init": {"kind": "pissa"}}, metrics={"accuracy": 0.8}, seed=1)
    publish(weights=b"2", config={"rank": 16, "init": {"kind": "pissa"}}, metrics={"accuracy": 0.9, "f1": 0.5}, seed=2)
    diff = registry.versions.diff("sentiment:1", "sentiment:2")
    assert [(change.key, change.before, change.after) for change in diff.config] == [("rank", 8, 16)]
    assert [(c.key, c.before, c.after) for c in diff.metrics] == [("accuracy", 0.8, 0.9), ("f1", None, 0.5)]
    assert [change.key for change in diff.data] == ["seed"]
    assert [change.key for change in diff.files] == ["adapter_model.safetensors"]
    assert diff.contract == ()
    assert not diff.same_answers
    assert registry.versions.diff("sentiment:1", "sentiment:1").same_answers


def test_a_diff_tells_the_settings_of_training_that_a_version_itself_does_not(registry, publish):
    def trained(weights, **params):
        run = registry.start(name="sentiment", params=params, seed=1)
        registry.finish(run, status="succeeded", summary={"steps": 100, "lr": 0.001})
        publish(weights=weights, config={"rank": params["rank"], "head": {"depth": 0}}, run=run)

    trained(b"1", name="sentiment", rank=8, lr=None, epochs=3.0, steps=None, head_depth=0)
    trained(b"2", name="sentiment", rank=16, lr=0.002, epochs=3.0, steps=None, head_depth=1)
    trained(b"3", name="sentiment", rank=16, lr=0.001, epochs=1.0, steps=50, head_depth=1, weight_decay=0.1)
    publish(weights=b"4")
    told = {}
    for pair in ("12", "13", "14"):
        diff = registry.versions.diff(*(f"sentiment:{number}" for number in pair))
        told[pair] = [(change.key, change.before, change.after) for change in diff.training]
    assert told["12"] == [("lr", 0.001, 0.002)]  # the first one's was left to the run
    assert told["13"] == [("epochs", 3.0, 1.0), ("steps", 100, 50), ("weight_decay", None, 0.1)]
    assert told["14"] == []  # it came without a run


def test_metrics_can_be_added_later_and_are_then_found(registry, publish):
    publish(metrics={"accuracy": 0.5})
    version = registry.versions.set_metrics("sentiment:1", {"accuracy": 0.6, "f1": 0.4})
    assert version.metrics == {"accuracy": 0.6, "f1": 0.4}
    assert names(registry, metrics=(MetricRange.parse("f1>0.3"),)) == ["sentiment"]


def test_tags_are_set_and_removed_and_limited(registry, publish):
    publish(tags={"a": "1"})
    assert registry.tags.set("sentiment", {"a": "2", "b": "3"}) == {"a": "2", "b": "3"}
    assert registry.tags.remove("sentiment", ["a", "absent"]) == {"b": "3"}
    with pytest.raises(UsageError) as caught:
        registry.tags.set("sentiment", {str(number): "" for number in range(16)})
    assert caught.value.code == "too_many_tags"
    assert registry.tags.get("sentiment") == {"b": "3"}
