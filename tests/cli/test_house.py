"""``umbel verify``, ``gc``, ``db``, ``keys``."""

import json
import sqlite3
from contextlib import closing

import pytest

from umbel.core.errors import AuthError
from umbel.registry.records import Scope


def spoil(registry, ref, data=b"spoilt"):
    """Overwrites the weights of a version in the store."""
    path = registry.store.path(registry.versions.get(ref).weights_sha256)
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def test_a_sound_registry_is_said_to_be_so(run):
    answer = run("verify")
    assert (answer.code, answer.out) == (0, "")
    assert "No problem found." in answer.err
    assert "4 versions" in answer.err


def test_a_missing_file_fails_and_names_the_versions(run, registry):
    registry.store.path(registry.versions.get("mood:2").weights_sha256).unlink()
    answer = run("verify")
    assert answer.code == 1
    assert [row[0] for row in answer.rows] == ["artifact_missing"]
    assert "mood:2" in answer.rows[0][1]


def test_only_a_deep_look_finds_a_flipped_byte(run, registry):
    path = registry.store.path(registry.versions.get("mood:2").weights_sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    spoil(registry, "mood:2", bytes(data))
    assert run("verify").code == 0
    answer = run("verify", "--deep", "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["problems"][0]["versions"] == ["mood:2"]


def test_gc_removes_nothing_until_told_to(run, registry):
    registry.versions.remove("mood:2")
    path = registry.store.path
    before = list(registry.store.digests())
    told = run("gc", "--grace-hours", "0")
    assert "umbel gc --yes" in told.err
    assert list(registry.store.digests()) == before
    done = json.loads(run("gc", "--yes", "--grace-hours", "0", "--json").out)
    assert not done["dry_run"]
    assert done["blobs"]
    assert not any(path(digest).exists() for digest in done["blobs"])
    assert run("verify", "--deep").code == 0
    assert run("gc").err == "Nothing to remove.\n"


def test_gc_leaves_what_is_younger_than_the_grace(run, registry):
    registry.versions.remove("mood:2")
    assert json.loads(run("gc", "--yes", "--json").out)["blobs"] == []


def test_a_database_that_fits_is_up_to_date(run):
    answer = run("db", "check")
    assert answer.code == 0
    assert "up to date" in answer.out
    assert json.loads(run("db", "upgrade", "--json").out)["current"]


def test_an_empty_database_is_upgraded_on_command(run, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    answer = run("db", "check")
    assert answer.code == 1
    assert "umbel db upgrade" in answer.out
    assert run("db", "upgrade").code == 0
    assert run("db", "check").code == 0


def test_a_backup_is_a_registry(run, tmp_path, monkeypatch):
    copy = tmp_path / "copy.db"
    assert str(copy) in run("db", "backup", str(copy)).out
    monkeypatch.setenv("UMBEL_DATABASE_URL", f"sqlite:///{copy}")
    assert [row[0] for row in run("adapters", "list").rows] == ["mood", "tone"]
    answer = run("db", "backup", str(copy))
    assert answer.code == 4
    assert "exists" in answer.err


def test_a_backup_without_a_name_lands_in_the_home(run, stocked):
    file = json.loads(run("db", "backup", "--json").out)["file"]
    assert file.startswith(str(stocked / "backups"))
    with closing(sqlite3.connect(file)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_database_nobody_knows_is_refused(run, monkeypatch):
    monkeypatch.setenv("UMBEL_DATABASE_URL", "mysql://x/y")
    answer = run("db", "check")
    assert answer.code != 0
    assert answer.err.startswith("error: ")


def test_a_secret_is_shown_once_and_alone_on_stdout(run, registry):
    answer = run("keys", "create", "web", "--scope", "infer,read", "-s", "train")
    key = registry.keys.check(answer.out.strip(), Scope.TRAIN)
    assert key.scopes == (Scope.INFER, Scope.READ, Scope.TRAIN)
    assert key.id in answer.err
    listed = run("keys", "list")
    assert answer.out.strip() not in listed.out
    assert listed.rows[0][:4] == [key.id, "web", f"umbel_{key.prefix}_...", "infer,read,train"]


@pytest.mark.parametrize("by", ["id", "prefix"])
def test_a_revoked_key_is_nobodys(run, registry, by):
    created = json.loads(run("keys", "create", "web", "--scope", "infer", "--json").out)
    assert run("keys", "revoke", created["key"][by]).out.startswith("Revoked ")
    with pytest.raises(AuthError):
        registry.keys.check(created["secret"])
    assert run("keys", "list").rows[0][-1]


def test_a_key_is_revoked_by_a_name_that_no_other_has(run, registry):
    first, second = (json.loads(run("keys", "create", "web", "--scope", "infer", "--json").out) for _ in range(2))
    ids = [one["key"]["id"] for one in (first, second)]
    answer = run("keys", "revoke", "web")
    assert (answer.code, answer.err.splitlines()[0]) == (2, "error: 2 keys are called 'web'.")
    assert all(one in answer.err for one in ids)
    assert registry.keys.check(first["secret"])
    run("keys", "revoke", ids[0])
    assert run("keys", "revoke", "web").out == f"Revoked {ids[1]} (web)\n"  # the one that still opened
    assert "did you mean web?" in run("keys", "revoke", "webb").err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["create", "web"], 2, "--scope"),
        (["create", "web", "--scope", "root"], 2, "infer, read"),
        (["create", "web", "--scope", "promot"], 2, "no scope 'promot'.\n  fix: did you mean promote? scopes are"),
        (["create", "Not A Name", "--scope", "infer"], 2, "cannot name a key"),
        (["revoke", "nope"], 3, "umbel keys list"),
    ],
)
def test_a_wrong_key_command_says_what_is_right(run, words, code, told):
    answer = run("keys", *words)
    assert (answer.code, answer.out) == (code, "")
    assert told in answer.err


def test_no_key_says_how_to_make_one(run):
    assert "umbel keys create" in run("keys", "list").err
