from sqlalchemy import text

WEIGHTS = "adapter_model.safetensors"


def test_a_whole_registry_is_clean(registry, publish):
    publish("a", weights=b"1")
    publish("b", weights=b"22", card="words")
    report = registry.verify(deep=True)
    assert report.clean
    assert (report.versions, report.blobs) == (2, 5)  # two weights, two manifests, one config
    assert registry.verify() == registry.verify()


def test_a_missing_file_is_named_with_the_versions_that_need_it(registry, publish):
    version = publish()
    registry.store.path(version.weights_sha256).unlink()
    [problem] = registry.verify().problems
    assert (problem.code, problem.path, problem.versions) == ("artifact_missing", WEIGHTS, ("sentiment:1",))


def test_a_flipped_bit_is_found_only_by_reading(registry, publish):
    version = publish(weights=b"\x00" * 100)
    path = registry.store.path(version.weights_sha256)
    path.chmod(0o644)
    path.write_bytes(b"\x00" * 99 + b"\x01")
    assert registry.verify().clean
    [problem] = registry.verify(deep=True).problems
    assert (problem.code, problem.path, problem.digest) == ("artifact_corrupt", WEIGHTS, version.weights_sha256)
    assert not path.exists()  # in quarantine
    publish(weights=b"\x00" * 100)
    assert registry.verify(deep=True).clean


def test_a_truncated_file_is_found_without_reading(registry, publish):
    version = publish()
    path = registry.store.path(version.weights_sha256)
    path.chmod(0o644)
    path.write_bytes(b"w")
    assert [problem.code for problem in registry.verify().problems] == ["artifact_corrupt"]


def test_a_lost_manifest_is_found(registry, publish):
    registry.store.path(publish().digest).unlink()
    [problem] = registry.verify().problems
    assert problem.path == "its manifest"


def test_rows_that_were_tampered_with_are_found(registry, publish):
    publish()
    with registry.database.write() as session:
        session.execute(text("UPDATE version_files SET path = 'other.json' WHERE path = 'adapter_config.json'"))
    assert "manifest_mismatch" in [problem.code for problem in registry.verify().problems]


def test_a_deleted_version_may_miss_its_files(registry, publish):
    publish(weights=b"1")
    version = publish(weights=b"2")
    registry.versions.remove("sentiment:2")
    registry.store.path(version.weights_sha256).unlink()
    assert registry.verify(deep=True).clean
