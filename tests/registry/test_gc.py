import os
import shutil
from contextlib import contextmanager

from umbel.core.digests import digest_bytes
from umbel.registry import store

NOW = -1  # a grace that lets even the newest file go


def test_a_dry_run_is_the_default_and_removes_nothing(registry, publish):
    publish(weights=b"1")
    gone = publish(weights=b"22")
    registry.versions.remove("sentiment:2")
    report = registry.gc(grace_ms=NOW)
    assert report.dry_run
    assert sorted(report.blobs) == sorted([gone.digest, gone.weights_sha256])
    assert report.bytes > 2
    assert registry.store.path(gone.weights_sha256).exists()
    assert registry.gc(grace_ms=NOW) == report


def test_what_no_version_needs_goes_and_the_rest_stays(registry, publish):
    kept = publish(weights=b"1")
    gone = publish(weights=b"2")
    registry.fetch(gone.digest)
    registry.versions.remove("sentiment:2")
    report = registry.gc(dry_run=False, grace_ms=NOW)
    assert report.cached == (gone.digest.removeprefix("sha256:"),)
    assert not registry.store.path(gone.weights_sha256).exists()
    assert sorted(registry.store.digests()) == sorted([kept.digest, *(file.digest for file in kept.files)])
    assert registry.fetch(kept.digest).ref == kept.ref
    assert registry.verify(deep=True).clean
    assert registry.gc(dry_run=False, grace_ms=NOW).blobs == ()


def test_a_deleted_version_keeps_its_bytes_for_the_grace(registry, publish):
    publish(weights=b"1")
    gone = publish(weights=b"2")
    for digest in registry.store.digests():  # published long ago
        os.utime(registry.store.path(digest), (0, 0))
    registry.versions.remove("sentiment:2")
    assert registry.gc(dry_run=False).blobs == ()
    assert registry.gc(dry_run=False, grace_ms=NOW).blobs
    assert not registry.store.path(gone.weights_sha256).exists()


def test_the_leftovers_of_a_dead_publish_go_after_the_grace(registry):
    orphan = registry.store.path(digest_bytes(b"orphan"))
    orphan.parent.mkdir()
    orphan.write_bytes(b"orphan")
    (registry.store.staging / "stage-dead").mkdir()
    assert registry.gc(dry_run=False).blobs == ()
    report = registry.gc(dry_run=False, grace_ms=NOW)
    assert report.blobs == (digest_bytes(b"orphan"),)
    assert report.staging == ("stage-dead",)
    assert not orphan.exists()


def test_gc_between_making_and_locking_a_staging_folder_costs_another_folder(registry, publish, monkeypatch):
    really, taken = store._holding, []

    def take(folder):
        taken.append(folder)
        shutil.rmtree(folder)

    @contextmanager
    def beside_gc(folder, *, wait=True):
        if not taken:
            take(folder)
        with really(folder, wait=wait):
            if len(taken) == 1:  # it is open already
                take(folder)
            yield

    monkeypatch.setattr(store, "_holding", beside_gc)
    assert publish().number == 1
    assert len(taken) == 2
    assert list(registry.store.staging.iterdir()) == []


def test_gc_that_looked_before_a_publish_locked_its_folder_leaves_it(registry):
    with registry.store.staged() as folder:
        (folder / "file").write_bytes(b"x")
        registry.store.drop_dead(folder)
        assert (folder / "file").read_bytes() == b"x"
    dead = registry.store.staging / "stage-dead"
    dead.mkdir()
    registry.store.drop_dead(dead)
    registry.store.drop_dead(dead)
    assert not dead.exists()


def test_the_staging_of_a_living_publish_is_left_alone(registry, publish):
    seen = []
    publish(validate=lambda folder: seen.append(registry.gc(dry_run=False, grace_ms=NOW)))
    assert seen[0].staging == ()
    assert registry.resolve("sentiment").number == 1


def test_a_file_that_is_gone_already_is_a_warning(registry, publish):
    publish(weights=b"1")
    gone = publish(weights=b"2")
    registry.versions.remove("sentiment:2")
    registry.store.path(gone.weights_sha256).unlink()
    report = registry.gc(dry_run=False, grace_ms=NOW)
    assert report.warnings == (f"{gone.weights_sha256} was gone already",)
    assert registry.gc(dry_run=False, grace_ms=NOW).blobs == ()


def test_a_shared_file_stays_while_anyone_needs_it(registry, publish):
    publish("a", weights=b"1")
    publish("a", weights=b"2")
    shared = publish("b", weights=b"2")
    registry.versions.remove("a:2")
    registry.gc(dry_run=False, grace_ms=NOW)
    assert registry.fetch(shared.digest).ref.name == "b"


def test_kept_forms_go_with_their_version(registry, publish):
    kept, gone = publish(weights=b"1"), publish(weights=b"2")
    paths = []
    for version in (kept, gone):
        name = version.digest.removeprefix("sha256:")
        paths.append(registry.settings.ready / name[:2] / f"{name}-0123456789abcdef")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(b"as a slot takes it")
    registry.versions.remove("sentiment:2")
    registry.gc(grace_ms=NOW)
    assert [path.exists() for path in paths] == [True, True]
    registry.gc(dry_run=False, grace_ms=NOW)
    assert [path.exists() for path in paths] == [True, False]
