"""One way out of an error, as a command, as an HTTP request and as a call of the Python client.

    umbel promote mood:2     POST /v1/adapters/mood/promote {"version": 2}     client.adapters.promote("mood", 2)

Errors are raised with the command in their hint. A server puts the request before it, since whoever asks over HTTP may
have neither a shell there nor this registry; the client writes its own call in the request's place.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """``request`` and ``call`` are templates over the groups of ``command``."""

    command: re.Pattern[str]
    request: str
    call: str


_Spelling = Callable[[Way, re.Match[str]], str]


def _way(command: str, request: str, call: str) -> Way:
    """NAME and N stand for a name and a version's number; possessive, so that no part of a name is taken for it."""
    name, number = r"(?P<name>[a-z0-9][a-z0-9._-]*+)", r"(?P<number>\d++|NUMBER)"
    pattern = re.sub(r"\bN\b", lambda _: number, command.replace("NAME", name))
    return Way(re.compile(pattern), request, call)


_ADAPTER = r"/v1/adapters/\g<name>"
_ALIAS = r"(?P<alias>[a-z0-9][a-z0-9._-]*+)"

WAYS = (
    _way("umbel adapters list", "GET /v1/adapters", "client.adapters.list()"),
    _way("umbel adapters show NAME", f"GET {_ADAPTER}/versions", r'client.adapters.versions("\g<name>")'),
    _way(
        "umbel adapters unyank NAME:N",
        rf"POST {_ADAPTER}/versions/\g<number>/unyank",
        r'client.adapters.unyank("\g<name>", \g<number>)',
    ),
    _way(
        "umbel promote NAME:N",
        rf'POST {_ADAPTER}/promote {{"version": \g<number>}}',
        r'client.adapters.promote("\g<name>", \g<number>)',
    ),
    _way(
        f"umbel rollback NAME --alias {_ALIAS}",
        rf'POST {_ADAPTER}/rollback {{"alias": "\g<alias>"}}',
        r'client.adapters.rollback("\g<name>", "\g<alias>")',
    ),
    _way("umbel rollback NAME(?! --alias)", f"POST {_ADAPTER}/rollback", r'client.adapters.rollback("\g<name>")'),
    _way(
        f"umbel alias set NAME:N {_ALIAS}",
        rf'PUT {_ADAPTER}/aliases/\g<alias> {{"version": \g<number>}}',
        r'client.adapters.set_alias("\g<name>", "\g<alias>", \g<number>)',
    ),
    _way(
        "umbel alias set(?= moves)",
        "PUT /v1/adapters/NAME/aliases/ALIAS",
        "client.adapters.set_alias(name, alias, version)",
    ),
    _way("umbel alias history NAME", f"GET {_ADAPTER}/history", r'client.adapters.history("\g<name>")'),
    _way("umbel experiments list", "GET /v1/experiments", "client.experiments.list()"),
    _way("umbel experiments status NAME", r"GET /v1/experiments/\g<name>", r'client.experiments.report("\g<name>")'),
    _way("umbel experiments stop NAME", r"POST /v1/experiments/\g<name>/stop", r'client.experiments.stop("\g<name>")'),
    _way("umbel ps", "GET /v1/status", "client.status()"),
    _way(
        r"--force --winner (?P<arm>\S++) --reason 'why'",
        r'{"force": true, "winner": "\g<arm>", "reason": "why"}',
        r'DecideRequest(force=True, winner="\g<arm>", reason="why")',
    ),
    _way("--no-promote", '{"promote": false}', "DecideRequest(promote=False)"),
    _way("--aa", '{"aa": true}', "ExperimentSpec(aa=True)"),
)


def over_http(hint: str) -> str:
    """``GET /v1/adapters (umbel adapters list) shows every adapter``."""
    return _respelt(hint, lambda _, match: match[0], _requested)


def in_python(hint: str) -> str:
    """``client.adapters.list() (umbel adapters list) shows every adapter``, of what ``over_http`` wrote."""
    return _respelt(hint, _requested, _called)


def in_the_shell(hint: str) -> str:
    """The command alone again, of what ``in_python`` wrote: for who uses the client by the command line."""
    return _respelt(hint, _called, lambda _, match: match[0])


def _respelt(hint: str, before: _Spelling, after: _Spelling) -> str:
    for way in WAYS:
        for match in {match[0]: match for match in way.command.finditer(hint)}.values():
            hint = hint.replace(before(way, match), after(way, match))
    return hint


def _requested(way: Way, match: re.Match[str]) -> str:
    return f"{match.expand(way.request)} ({match[0]})"


def _called(way: Way, match: re.Match[str]) -> str:
    return f"{match.expand(way.call)} ({match[0]})"
