"""Ways out of an error, in three tongues."""

import re

import pytest

from umbel.core.ways import WAYS, in_python, in_the_shell, over_http


@pytest.mark.parametrize(
    ("command", "request_", "call"),
    [
        ("umbel adapters list", "GET /v1/adapters", "client.adapters.list()"),
        ("umbel adapters show a.b", "GET /v1/adapters/a.b/versions", 'client.adapters.versions("a.b")'),
        ("umbel promote a-b:12", 'POST /v1/adapters/a-b/promote {"version": 12}', 'client.adapters.promote("a-b", 12)'),
        ("umbel rollback mood", "POST /v1/adapters/mood/rollback", 'client.adapters.rollback("mood")'),
        (
            "umbel rollback mood --alias canary",
            'POST /v1/adapters/mood/rollback {"alias": "canary"}',
            'client.adapters.rollback("mood", "canary")',
        ),
        (
            "--force --winner a|b --reason 'why'",
            '{"force": true, "winner": "a|b", "reason": "why"}',
            'DecideRequest(force=True, winner="a|b", reason="why")',
        ),
    ],
)
def test_a_command_is_told_as_a_request_as_a_call_and_as_itself_again(command, request_, call):
    hint = f"first {command}, or again {command}; then wait"
    asked = over_http(hint)
    assert asked == f"first {request_} ({command}), or again {request_} ({command}); then wait"
    called = in_python(asked)
    assert called == f"first {call} ({command}), or again {call} ({command}); then wait"
    assert in_the_shell(called) == hint


def test_what_is_no_way_stays_as_it_is():
    hint = "serve it on its own backbone: umbel serve --backbone mood:2"
    assert over_http(hint) == in_python(hint) == in_the_shell(hint) == hint


def test_every_request_is_a_route_and_every_call_a_method(api_routes):
    from umbel.client import Client

    client = Client("http://127.0.0.1:9")
    for way in WAYS:
        method, _, path = way.request.partition(" ")
        if path.startswith("/"):
            spelt = re.sub(r"\\g<\w+>|NAME|ALIAS", "{}", path.split(" {")[0])
            assert (method, spelt) in api_routes
        if way.call.startswith("client."):
            found = client
            for part in way.call.partition("(")[0].split(".")[1:]:
                found = getattr(found, part)
            assert callable(found)


@pytest.fixture
def api_routes():
    from umbel.server.app import ROUTERS

    return {
        (method, re.sub(r"\{[^}]*\}", "{}", route.path))
        for router in ROUTERS
        for route in router.routes
        for method in route.methods
    }
