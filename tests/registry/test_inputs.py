import pytest

from umbel.core.digests import digest_bytes
from umbel.core.errors import Conflict, NotFound, UsageError

ONE, TWO = digest_bytes(b"one"), digest_bytes(b"two")
BACKBONE = digest_bytes(b"a backbone")


def test_a_backbone_is_found_by_name_and_by_fingerprint(registry):
    made = registry.backbones.register(
        name="llama", fingerprint=ONE, source="hf:x/y@1", config={"hidden": 64}, licence="MIT", tokenizer_sha=TWO
    )
    assert registry.backbones.get("llama") == registry.backbones.get(ONE) == made
    assert registry.backbones.list() == (made,)
    with pytest.raises(NotFound, match="nope"):
        registry.backbones.get("nope")


def test_registering_a_backbone_again_is_a_no_op_but_never_a_change(registry):
    given = {"name": "llama", "fingerprint": ONE, "source": "here", "config": {}}
    assert registry.backbones.register(**given) == registry.backbones.register(**given)
    with pytest.raises(Conflict) as caught:
        registry.backbones.register(**given | {"fingerprint": TWO})
    assert caught.value.code == "name_taken"
    with pytest.raises(Conflict, match="llama") as caught:
        registry.backbones.register(**given | {"name": "alpaca"})
    assert caught.value.code == "backbone_known"


def test_a_backbone_goes_when_no_adapter_is_bound_to_it(registry, publish):
    registry.backbones.register(name="llama", fingerprint=BACKBONE, source="here", config={})
    publish()
    with pytest.raises(Conflict) as caught:
        registry.backbones.remove("llama")
    assert (caught.value.code, caught.value.message) == ("backbone_in_use", "1 adapter is bound to 'llama'.")
    registry.adapters.remove("sentiment")
    registry.backbones.remove("llama")
    assert registry.backbones.list() == ()
    assert publish("llama").name == "llama"  # the name is free again


def test_a_dataset_name_means_its_newest_content(registry):
    given = {"name": "tweets", "form": "classify", "rows": 10, "bytes": 100}
    first = registry.datasets.register(digest=ONE, splits={"train": 8, "test": 2}, **given)
    second = registry.datasets.register(digest=TWO, **given)
    assert registry.datasets.register(digest=ONE, **given | {"rows": 99}) == first
    assert registry.datasets.get("tweets") == second
    assert registry.datasets.get(ONE).splits == {"train": 8, "test": 2}
    assert registry.datasets.list() == (first, second)


def test_a_removed_dataset_is_gone_by_every_name(registry):
    registry.datasets.register(name="tweets", digest=ONE, form="classify", rows=1, bytes=1)
    registry.datasets.remove("tweets")
    for look in (registry.datasets.get, registry.datasets.remove):
        with pytest.raises(NotFound, match="tweets"):
            look("tweets")


def test_a_name_that_cannot_be_one_is_refused(registry):
    with pytest.raises(UsageError):
        registry.backbones.register(name="../up", fingerprint=ONE, source="x", config={})
