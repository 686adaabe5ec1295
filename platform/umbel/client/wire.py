"""What both clients do around a call: address and key, errors as exceptions, when to try again, events of a stream."""

import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import httpx2

from umbel.client.calls import Call
from umbel.core.errors import (
    AuthError,
    Conflict,
    GateFailed,
    Interrupted,
    NotAllowed,
    NotFound,
    Overloaded,
    UmbelError,
    Unavailable,
    UsageError,
)
from umbel.core.ways import in_python
from umbel.core.wire.base import SEND_KEY, Reply

T = TypeVar("T")

URL = "http://127.0.0.1:8000"
TRIES = 3
"""A request that met a full queue or a lost connection is sent so often in all."""

_BY_STATUS: Mapping[int, type[UmbelError]] = {
    401: AuthError,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    422: GateFailed,
    429: Overloaded,
    499: Interrupted,
    503: Unavailable,
}
_METHODS: Mapping[str, str] = {
    "/v1/chat/completions": "client.chat",
    "/v1/completions": "client.complete",
    "/v1/classify": "client.classify",
    "/v1/score": "client.score",
    "/v1/tag": "client.tag",
    "/v1/embeddings": "client.embed",
}
"""What asks a route."""
_FULL = ("queue_full", "overloaded")
_LONGEST_WAIT = 10.0


def settings(base_url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
    """For the constructors of httpx2's clients; ``UMBEL_URL`` and ``UMBEL_API_KEY`` stand where nothing is given.

    Raises UsageError (``invalid_url``).
    """
    key = api_key or os.environ.get("UMBEL_API_KEY")
    headers = {"user-agent": f"umbel-python/{version('umbel')}"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    url = base_url or os.environ.get("UMBEL_URL") or URL
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address of a server.", code="invalid_url", hint=f"write http://{url}")
    return {"base_url": url.removesuffix("/").removesuffix("/v1"), "headers": headers, "timeout": timeout}


def request_of(call: Call[Any]) -> dict[str, Any]:
    """For ``request(**...)`` of httpx2."""
    query = {key: value for key, value in call.query.items() if value != []}
    headers = {name.encode(): value.encode() for name, value in call.headers.items()}  # a unit may be any text
    sent = {"method": call.method, "url": call.path, "params": query, "headers": headers}
    if call.files:
        return {**sent, "data": dict(call.body or {}), "files": [("files", file) for file in call.files]}
    return {**sent, "json": call.body}


def is_answer(call: Call[Any], response: httpx2.Response) -> bool:
    return response.is_success or response.status_code in call.accepts


def answer_of(call: Call[T], content: bytes | str, headers: Mapping[str, str]) -> T:
    """The body as the call reads it; it remembers the request that it answers."""
    found = call.read(content)
    if isinstance(found, Reply):
        found.came_in(headers.get("x-request-id"))
    return found


def error_of(response: httpx2.Response) -> UmbelError:
    """The server's error as the exception that the server itself raised; its body must be read."""
    try:
        told = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        told = {"message": f"HTTP {response.status_code} without an error object.", "code": "not_umbel"}
    return build_error(response.status_code, told, response.headers)


def build_error(status: int, told: Mapping[str, Any], headers: Mapping[str, str]) -> UmbelError:
    kind = (
        Overloaded if told.get("code") in _FULL else _BY_STATUS.get(status, UsageError if status < 500 else UmbelError)
    )
    message, _, hint = str(told.get("message", "")).partition(" Fix: ")
    hint = in_python(hint.replace(SEND_KEY, "give the client api_key=KEY, or set UMBEL_API_KEY"))
    if told.get("code") == "wrong_route":
        hint = re.sub(r"/v1/[a-z/]+", lambda route: f"{_METHODS.get(route[0], 'the route')} ({route[0]})", hint)
    wait = headers.get("retry-after-ms")
    error = kind(
        message,
        hint=hint or None,
        code=told.get("code"),
        param=told.get("param"),
        retry_after=float(wait) / 1000 if wait else None,
    )
    error.request_id = headers.get("x-request-id")
    return error


def lost(error: httpx2.TransportError, url: str) -> UmbelError:
    """The connection failed. A timeout while reading is no reason to ask again: the answer may be under way."""
    slow = isinstance(error, httpx2.TimeoutException)
    return Unavailable(
        f"{url} {'did not answer in time' if slow else 'cannot be reached'} ({type(error).__name__}).",
        code="server_timeout" if slow else "server_unreachable",
        hint="give Client(timeout=...) more seconds"
        if slow
        else "start it: umbel serve; or give the address of one that runs, as Client(URL), --url URL or UMBEL_URL",
        retry_after=None if slow else 0.2,
    )


def wait_before_retry(call: Call[Any], error: UmbelError, tries: int) -> float | None:
    """Seconds until the next try, None if there shall be none."""
    if tries >= TRIES or error.retry_after is None or not call.repeatable:
        return None
    return min(_LONGEST_WAIT, error.retry_after * 2.0 ** (tries - 1))


def event_of(call: Call[Any], line: str, headers: Mapping[str, str]) -> Any:
    """What one line of a stream says: an event, or None for pings and ends. Raises the error it breaks off with."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    data = line.removeprefix("data: ")
    if data.startswith('{"error"'):
        raise build_error(500, json.loads(data)["error"], headers)
    return answer_of(call, data, headers)
