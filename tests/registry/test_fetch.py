import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from umbel.core.errors import Conflict, Unavailable
from umbel.registry import Registry

WEIGHTS = "adapter_model.safetensors"


def overwrite(path, data):
    """Other bytes in the same inode, as a failing disk would do it."""
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_fetched_folder_has_the_files_of_the_manifest(registry, publish):
    version = publish(files={WEIGHTS: b"weights", "tokenizer/vocab.json": b"[]", "README.md": b"# Card"})
    stored = registry.fetch(version.digest)
    assert stored.ref == version.ref
    assert stored.manifest == version.manifest
    assert (stored.folder / WEIGHTS).read_bytes() == b"weights"
    assert (stored.folder / "tokenizer" / "vocab.json").read_bytes() == b"[]"
    assert not (stored.folder / "README.md").exists()


def test_a_fetched_folder_is_read_only_and_costs_no_space(registry, publish):
    version = publish()
    folder = registry.fetch(version.digest).folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    assert (folder / WEIGHTS).stat().st_ino == registry.store.path(version.weights_sha256).stat().st_ino


def test_a_corrupt_blob_is_named_quarantined_and_healed_by_publishing_again(registry, publish):
    version = publish()
    overwrite(registry.store.path(version.weights_sha256), b"WEIGHTS")
    with pytest.raises(Unavailable, match=WEIGHTS) as caught:
        registry.fetch(version.digest)
    assert caught.value.code == "artifact_corrupt"
    assert not registry.store.path(version.weights_sha256).exists()
    assert len(list((registry.store.root / "quarantine").iterdir())) == 1
    assert publish() == version
    assert (registry.fetch(version.digest).folder / WEIGHTS).read_bytes() == b"weights"


def test_corruption_after_the_first_fetch_is_found_by_the_next(registry, publish):
    version = publish()
    folder = registry.fetch(version.digest).folder
    overwrite(folder / WEIGHTS, b"WEIGHTS")  # a hard link: the blob too
    with pytest.raises(Unavailable, match=WEIGHTS):
        registry.fetch(version.digest)


def test_a_damaged_cache_is_made_again_from_the_store(registry, publish):
    version = publish()
    folder = registry.fetch(version.digest).folder
    folder.chmod(0o755)
    (folder / WEIGHTS).unlink()
    assert (registry.fetch(version.digest).folder / WEIGHTS).read_bytes() == b"weights"


def test_a_cache_on_another_disk_gets_copies(registry, publish, monkeypatch):
    version = publish()

    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    folder = registry.fetch(version.digest).folder
    assert (folder / WEIGHTS).read_bytes() == b"weights"
    assert stat.S_IMODE((folder / WEIGHTS).stat().st_mode) == 0o444


def test_many_threads_may_fetch_the_same_digest_at_once(registry, publish):
    version = publish()
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: registry.fetch(version.digest).folder, range(16)))
    assert len(folders) == 1


def test_a_second_process_sees_what_the_first_published(settings, registry, publish):
    version = publish()
    with Registry.open(settings) as other:
        assert other.fetch(other.resolve("sentiment").digest).ref == version.ref


def test_an_export_is_a_writable_copy_with_the_card(registry, publish, tmp_path):
    publish(card="# Card")
    folder = registry.export("sentiment:1", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS]
    overwrite(folder / WEIGHTS, b"mine now")
    assert (registry.fetch(registry.resolve("sentiment").digest).folder / WEIGHTS).read_bytes() == b"weights"
    with pytest.raises(Conflict):
        registry.export("sentiment:1", folder)
