import pytest

from umbel.core.errors import NotFound, Unavailable, UsageError
from umbel.core.protocols import AdapterSource, RunLog


def test_the_registry_is_an_adapter_source_and_a_run_log(registry):
    source: AdapterSource = registry
    log: RunLog = registry
    run = log.start(name="sentiment", params={}, seed=0)
    assert not log.cancelled(run)
    with pytest.raises(NotFound):
        source.resolve("sentiment")


def test_each_way_of_naming_a_version_finds_it(registry, publish):
    first, second = publish(weights=b"1"), publish(weights=b"2")
    registry.aliases.set("sentiment:2", "canary")
    assert registry.resolve("sentiment") == first.ref
    assert registry.resolve("sentiment@champion") == first.ref
    assert registry.resolve("sentiment:2") == second.ref
    assert registry.resolve("sentiment@canary") == second.ref
    assert registry.resolve("sentiment@latest") == second.ref
    assert registry.resolve(f"sentiment@{first.digest}") == first.ref


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("nope", "adapter_not_found"),
        ("nope:1", "adapter_not_found"),
        ("sentiment:9", "version_not_found"),
        ("sentiment@canary", "alias_not_found"),
        ("sentiment@sha256:" + "0" * 64, "version_not_found"),
    ],
)
def test_what_is_missing_is_named(registry, publish, model, code):
    publish()
    with pytest.raises(NotFound) as caught:
        registry.resolve(model)
    assert caught.value.code == code
    assert model.partition(":")[0].partition("@")[0] in caught.value.message
    assert caught.value.hint


def test_a_name_that_is_nearly_right_is_told_with_the_one_it_is_like(registry, publish):
    publish()
    publish("tone")
    with pytest.raises(NotFound) as caught:
        registry.resolve("sentment:1")
    assert (caught.value.hint or "").startswith("did you mean sentiment? umbel adapters list")
    registry.adapters.remove("sentiment")
    with pytest.raises(NotFound) as caught:
        registry.resolve("sentment")
    assert "did you mean" not in (caught.value.hint or "")


def test_a_digest_belongs_to_its_own_adapter(registry, publish):
    digest = publish("a", weights=b"1").digest
    publish("b", weights=b"2")
    with pytest.raises(NotFound):
        registry.resolve(f"b@{digest}")


def test_a_yanked_version_answers_to_its_digest_only(registry, publish):
    version = publish(weights=b"1")
    registry.versions.yank("sentiment:1", reason="wrong labels")
    for model in ("sentiment", "sentiment:1", "sentiment@champion"):
        with pytest.raises(Unavailable, match="wrong labels") as caught:
            registry.resolve(model)
        assert caught.value.code == "version_yanked"
        assert "rollback" not in caught.value.hint  # nothing is before the first version
    assert registry.resolve(f"sentiment@{version.digest}") == version.ref
    registry.versions.unyank("sentiment:1")
    assert registry.resolve("sentiment") == version.ref


def test_a_bare_name_without_a_champion_is_told_what_makes_it_answer(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    registry.aliases.remove("sentiment", "champion")
    with pytest.raises(NotFound, match="no version answers to the bare name 'sentiment' yet") as caught:
        registry.resolve("sentiment")
    assert caught.value.code == "alias_not_found"
    assert caught.value.hint.startswith("umbel promote sentiment:2 makes one; or ask sentiment:2; ")
    with pytest.raises(NotFound, match="has no alias 'champion'"):
        registry.resolve("sentiment@champion")
    for number in (1, 2):
        registry.versions.yank(f"sentiment:{number}", reason="bad")
    with pytest.raises(NotFound) as caught:
        registry.resolve("sentiment")
    assert "promote" not in caught.value.hint


def test_a_yanked_version_tells_a_rollback_only_where_one_helps(registry, publish):
    for weights in (b"1", b"2", b"3"):
        publish(weights=weights)
    registry.aliases.set("sentiment:3", "champion")
    for number in (1, 2):
        registry.aliases.set(f"sentiment:{number}", "canary")
    registry.versions.yank("sentiment:2", reason="bad")
    registry.versions.yank("sentiment:3", reason="worse")
    hints = {}
    for model in ("sentiment", "sentiment@canary", "sentiment:2", "sentiment:3"):
        with pytest.raises(Unavailable) as caught:
            registry.resolve(model)
        hints[model] = caught.value.hint.split("umbel adapters unyank")[0]
        if ":" in model:
            assert caught.value.message.startswith(f"{model} was yanked: ")
    assert hints["sentiment"] == "umbel rollback sentiment for sentiment:1, or "
    assert hints["sentiment@canary"] == "umbel rollback sentiment --alias canary for sentiment:1, or "
    assert hints["sentiment:2"] == hints["sentiment:3"] == ""
    assert registry.aliases.rollback("sentiment").target == 1
    assert registry.aliases.rollback("sentiment", "canary").target == 1


def test_latest_passes_over_what_cannot_answer(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    publish(weights=b"3")
    registry.versions.yank("sentiment:3", reason="bad")
    assert registry.resolve("sentiment@latest").number == 2
    registry.versions.deprecate("sentiment:2", reason="old")
    assert registry.resolve("sentiment@latest").number == 2


def test_a_rejected_version_is_not_ready(registry, publish):
    publish()
    registry.versions.reject("sentiment:1", reason="NaN")
    with pytest.raises(Unavailable, match="NaN") as caught:
        registry.resolve("sentiment:1")
    assert caught.value.code == "version_not_ready"


def test_a_deleted_version_is_not_found(registry, publish):
    publish(weights=b"1")
    digest = publish(weights=b"2").digest
    registry.versions.remove("sentiment:2")
    for model in ("sentiment:2", f"sentiment@{digest}"):
        with pytest.raises(NotFound) as caught:
            registry.resolve(model)
        assert caught.value.code == "version_not_found"
    with pytest.raises(NotFound):
        registry.fetch(digest)


def test_changing_a_state_needs_a_version_that_is_said(registry, publish):
    publish()
    with pytest.raises(UsageError, match="which version"):
        registry.versions.yank("sentiment", reason="x")
