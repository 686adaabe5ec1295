import pytest

from umbel.core.digests import digest_bytes
from umbel.core.errors import AuthError, Conflict, NotAllowed, NotFound, UsageError
from umbel.registry import idempotency
from umbel.registry.records import Scope, StoredReply

REQUEST, OTHER = digest_bytes(b"request"), digest_bytes(b"other")


def test_a_key_opens_what_its_scopes_say(registry):
    made, secret = registry.keys.create("ci", ["infer", Scope.READ], actor="ada")
    assert registry.keys.check(secret) == made
    assert registry.keys.check(secret, Scope.INFER).scopes == (Scope.INFER, Scope.READ)
    with pytest.raises(NotAllowed, match="publish"):
        registry.keys.check(secret, Scope.PUBLISH)


def test_admin_includes_every_scope(registry):
    _, secret = registry.keys.create("root", [Scope.ADMIN])
    for scope in Scope:
        assert registry.keys.check(secret, scope)


def test_only_the_whole_key_opens(registry):
    made, secret = registry.keys.create("ci", ["read"])
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), f"umbel_{made.prefix}_", made.prefix, "umbel_none_x"):
        with pytest.raises(AuthError):
            registry.keys.check(wrong)


def test_a_revoked_key_opens_nothing(registry):
    made, secret = registry.keys.create("ci", ["read"])
    assert registry.keys.revoke(made.prefix).revoked_at
    with pytest.raises(AuthError):
        registry.keys.check(secret)
    with pytest.raises(NotFound):
        registry.keys.revoke("key-nope")
    assert [key.id for key in registry.keys.list()] == [made.id]


def test_the_secret_is_nowhere_in_the_database(registry):
    _, secret = registry.keys.create("ci", ["read"])
    with registry.database.engine.connect() as connection:
        kept = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
        kept += str(connection.exec_driver_sql("SELECT * FROM audit_log").all())
    random = secret.split("_", 2)[2]  # it may hold more of them
    assert len(random) == 43
    assert random not in kept
    assert digest_bytes(secret.encode()) in kept


@pytest.mark.parametrize("scopes", [[], ["everything"]])
def test_scopes_that_mean_nothing_are_refused(registry, scopes):
    with pytest.raises(UsageError) as caught:
        registry.keys.create("ci", scopes)
    assert caught.value.code == "invalid_scope"


def test_what_changes_is_in_the_audit_log_with_who_did_it(registry, publish):
    publish(weights=b"1", actor="ada")
    publish(weights=b"2", actor="ada")
    registry.aliases.promote("sentiment:2", actor="bob", reason="better")
    registry.versions.yank("sentiment:1", reason="bad", actor="eve")
    told = [(entry.actor, entry.action, entry.target) for entry in registry.audit.list()]
    assert told[:2] == [("eve", "yanked", "sentiment:1"), ("bob", "alias.set", "sentiment@champion")]
    assert ("ada", "publish", "sentiment:2") in told
    [yank] = registry.audit.list(target="sentiment:1", limit=1)
    assert yank.detail == {"before": "ready", "reason": "bad"}
    assert all(entry.id < yank.id for entry in registry.audit.list(before=yank.id))


def test_what_is_refused_leaves_no_audit_entry(registry, publish):
    publish()
    before = registry.audit.list()
    with pytest.raises(Conflict):
        registry.versions.remove("sentiment:1")
    assert registry.audit.list() == before


def test_a_request_that_comes_twice_gets_the_first_answer(registry):
    keys = registry.idempotency
    assert keys.recall("key-1", "k", REQUEST) is None
    assert keys.remember("key-1", "k", REQUEST, status=201, body={"n": 1}) == StoredReply(201, {"n": 1})
    assert keys.remember("key-1", "k", REQUEST, status=201, body={"n": 2}) == StoredReply(201, {"n": 1})
    assert keys.recall("key-1", "k", REQUEST) == StoredReply(201, {"n": 1})
    assert keys.recall("key-2", "k", REQUEST) is None


def test_the_same_key_with_another_request_is_refused(registry):
    registry.idempotency.remember("key-1", "k", REQUEST, status=200, body={})
    for again in (
        lambda: registry.idempotency.recall("key-1", "k", OTHER),
        lambda: registry.idempotency.remember("key-1", "k", OTHER, status=200, body={}),
    ):
        with pytest.raises(Conflict) as caught:
            again()
        assert caught.value.code == "idempotency_mismatch"


def test_a_key_is_new_again_after_its_time(registry, monkeypatch):
    registry.idempotency.remember("key-1", "k", REQUEST, status=200, body={})
    monkeypatch.setattr(idempotency, "KEEP_MS", -1)
    assert registry.idempotency.recall("key-1", "k", OTHER) is None
    assert registry.idempotency.remember("key-1", "k", OTHER, status=202, body={}).status == 202
