import os
import stat
from pathlib import Path

import pytest
from sqlalchemy import event, text

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.errors import AdapterRefused, Conflict, NotFound, UsageError
from umbel.core.manifest import Manifest, ManifestFile
from umbel.registry.records import VersionState

BACKBONE = digest_bytes(b"a backbone")
OTHER_BACKBONE = digest_bytes(b"another backbone")
WEIGHTS = "adapter_model.safetensors"


def blobs_of(registry):
    return sorted(registry.store.digests())


def staging_of(registry):
    return list(registry.store.staging.iterdir())


def test_versions_count_up_from_one_inside_each_adapter(publish):
    assert [publish("a", weights=b"1").number, publish("a", weights=b"2").number] == [1, 2]
    assert publish("b", weights=b"1").number == 1


def test_the_digest_is_that_of_the_canonical_manifest(publish):
    contract = Contract(output_head=OutputHead.GENERATE, template="Say {text}")
    version = publish(config={"rank": 4, "scale": 2.0}, contract=contract)
    files = (
        ManifestFile(path="adapter_config.json", digest=digest_bytes(b"{}"), bytes=2),
        ManifestFile(path=WEIGHTS, digest=digest_bytes(b"weights"), bytes=7),
    )
    manifest = Manifest(
        method="lora", config={"rank": 4, "scale": 2.0}, contract=contract, backbone=BACKBONE, files=files
    )
    assert version.digest == manifest.digest() == version.manifest.digest()
    assert version.weights_sha256 == digest_bytes(b"weights")
    assert version.bytes == 9


def test_the_digest_survives_a_round_trip_through_the_database(registry, publish):
    config = {"alpha": 16.0, "tiny": 1e-17, "nested": {"pattern": ("a", "b")}, "text": "größe", "none": None}
    version = publish(config=config)
    assert registry.versions.get("sentiment:1").manifest.digest() == version.digest


def test_everything_that_was_said_is_kept(registry, publish):
    run = registry.runs.start(name="sentiment", params={"lr": 1e-3}, seed=7)
    publish(weights=b"parent")
    version = publish(
        run=run,
        parent="sentiment:1",
        dataset=digest_bytes(b"data"),
        metrics={"accuracy": 0.9},
        card="# Card",
        seed=7,
        n_params=1234,
        description="tells moods",
        tags={"team": "blue"},
        actor="ada",
    )
    assert version == registry.versions.get("sentiment:2")
    assert (version.run, version.parent.number, version.dataset) == (run, 1, digest_bytes(b"data"))
    assert (version.metrics, version.card, version.seed) == ({"accuracy": 0.9}, "# Card", 7)
    assert (version.n_params, version.created_by, version.state) == (1234, "ada", VersionState.READY)
    assert registry.tags.get("sentiment") == {"team": "blue"}


def test_files_may_be_given_as_paths(publish, tmp_path):
    (tmp_path / "w").write_bytes(b"from disk")
    assert publish(files={WEIGHTS: tmp_path / "w"}).weights_sha256 == digest_bytes(b"from disk")
    assert (tmp_path / "w").read_bytes() == b"from disk"


def test_the_card_is_kept_beside_the_digest(publish):
    bare = publish("a")
    told = publish("b", files={WEIGHTS: b"weights", "adapter_config.json": b"{}", "README.md": b"# Words"})
    assert told.card == "# Words"
    assert told.digest == bare.digest
    assert [file.path for file in told.files] == ["adapter_config.json", WEIGHTS]


def test_the_first_version_becomes_champion_and_later_ones_do_not(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    assert registry.resolve("sentiment").number == 1
    assert registry.aliases.get("sentiment") == {"champion": 1}


def test_publishing_while_the_champion_is_yanked_does_not_deploy(registry, publish):
    publish(weights=b"1")
    registry.versions.yank("sentiment:1", reason="wrong labels")
    publish(weights=b"2")
    assert registry.aliases.get("sentiment") == {"champion": 1}


def test_publishing_equal_files_again_is_a_no_op(registry, publish):
    first = publish(metrics={"accuracy": 0.5})
    again = publish(metrics={"accuracy": 0.9}, card="other words")
    assert again == first
    assert len(registry.versions.list("sentiment").items) == 1
    assert publish(weights=b"2").number == 2


def test_a_deleted_version_that_is_published_again_comes_back_with_its_number(registry, publish):
    publish(weights=b"1")
    publish(weights=b"2")
    registry.versions.remove("sentiment:2")
    assert publish(weights=b"3").number == 3
    back = publish(weights=b"2")
    assert (back.number, back.state) == (2, VersionState.READY)
    assert registry.fetch(back.digest).ref.number == 2


def test_one_digest_under_two_names_shares_its_bytes(registry, publish):
    a, b = publish("a"), publish("b")
    assert a.digest == b.digest
    assert len(blobs_of(registry)) == 3  # weights, config, manifest
    assert registry.fetch(b.digest).ref.name == "a"


def test_another_backbone_is_refused_and_both_fingerprints_are_named(registry, publish):
    publish(weights=b"1")
    before = blobs_of(registry)
    with pytest.raises(Conflict) as caught:
        publish(weights=b"2", backbone=OTHER_BACKBONE)
    assert caught.value.code == "backbone_mismatch"
    assert BACKBONE in str(caught.value)
    assert OTHER_BACKBONE in str(caught.value)
    assert blobs_of(registry) == before


def test_an_adapter_that_was_removed_whole_may_come_back_on_another_backbone(registry, publish):
    publish(weights=b"1")
    registry.adapters.remove("sentiment")
    assert publish(weights=b"2", backbone=OTHER_BACKBONE).number == 2
    assert registry.resolve("sentiment").number == 2


def test_a_validator_sees_the_files_and_its_refusal_leaves_nothing(registry, publish):
    seen = []

    def refuse(folder):
        seen.extend(sorted(path.name for path in folder.iterdir()))
        raise AdapterRefused("not finite", code="not_finite")

    with pytest.raises(AdapterRefused, match="not finite"):
        publish(validate=refuse, card="# Card")
    assert seen == ["adapter_config.json", WEIGHTS]
    assert blobs_of(registry) == []
    assert staging_of(registry) == []
    with pytest.raises(NotFound):
        registry.resolve("sentiment")


def test_stored_files_are_read_only_and_staging_is_gone(registry, publish):
    version = publish()
    assert stat.S_IMODE(registry.store.path(version.weights_sha256).stat().st_mode) == 0o444
    assert staging_of(registry) == []


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"adapter_config.json": b"{}"}, "missing_weights"),
        ({WEIGHTS: b""}, "empty_file"),
        ({WEIGHTS: b"w", "../evil.json": b"x"}, "unsafe_path"),
        ({WEIGHTS: b"w", "/etc/passwd.json": b"x"}, "unsafe_path"),
        ({WEIGHTS: b"w", "a\\b.json": b"x"}, "unsafe_path"),
        ({WEIGHTS: b"w", "nul\0.json": b"x"}, "unsafe_path"),
        ({WEIGHTS: b"w", "adapter_model.bin": b"x"}, "unsafe_file"),
        ({WEIGHTS: b"w", "modeling.py": b"x"}, "unexpected_file"),
    ],
)
def test_files_that_cannot_be_an_adapter_are_refused(registry, publish, files, code):
    with pytest.raises(AdapterRefused) as caught:
        publish(files=files)
    assert caught.value.code == code
    assert blobs_of(registry) == []


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"method": "Bad Method"}, "invalid_method"),
        ({"metrics": {"loss": float("nan")}}, "invalid_metric"),
        ({"backbone": "llama"}, "invalid_digest"),
        ({"config": {"x": object()}}, "invalid_config"),
        ({"parent": "sentiment"}, "invalid_parent"),
        ({"tags": {"k": "v" * 513}}, "invalid_tag"),
    ],
)
def test_words_that_cannot_be_kept_are_refused(publish, given, code):
    with pytest.raises(UsageError) as caught:
        publish(**given)
    assert caught.value.code == code


def test_an_unknown_run_is_refused_by_name(publish):
    with pytest.raises(NotFound, match="run-nope"):
        publish(run="run-nope")


def test_the_database_itself_refuses_to_edit_a_version(registry, publish):
    publish()
    with pytest.raises(Exception, match="never edited"), registry.database.write() as session:
        session.execute(text("UPDATE adapter_versions SET number = 9"))


def test_the_database_itself_refuses_to_forget_an_alias_move(registry, publish):
    publish()
    with pytest.raises(Exception, match="never edited"), registry.database.write() as session:
        session.execute(text("DELETE FROM alias_events"))


def test_bytes_are_on_the_disk_before_the_row_is(registry, publish, monkeypatch):
    """Each blob's file is synced before it is linked, and its folder before the commit: a power cut loses neither."""
    told = []
    sync, link = os.fsync, os.link

    def fsync(descriptor):
        told.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def linked(source, target):
        told.append(("link", str(source), str(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", linked)
    event.listen(registry.database.engine, "commit", lambda _: told.append(("commit",)))
    publish()
    committed = told.index(("commit",))
    links = [line for line in told if line[0] == "link"]
    assert len(links) == 3
    for line in links:
        _, source, target = line
        assert told.index(("sync", source)) < told.index(line)
        assert told.index(line) < told.index(("sync", str(Path(target).parent))) < committed
