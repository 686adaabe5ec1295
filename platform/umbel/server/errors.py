"""Every error as OpenAI's error object, made in one place.

    {"error": {"message", "type", "param", "code"}}      the fix is part of the message

What a client must not see (exception texts, paths of this machine) is taken out here too.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from starlette.responses import JSONResponse

from umbel.core.errors import NotFound, UmbelError, UsageError
from umbel.core.ways import over_http

_KEPT_BACK = {
    "database_unavailable": "the registry's database did not answer.",
    "store_unavailable": "the store of artifacts did not answer.",
}
"""Their own messages quote the driver, and with it addresses."""


_ALIKE = 0.8
"""A route that is proposed for another: all of them share much of their letters."""


class TooLarge(UsageError):
    status = 413
    default_code = "request_too_large"


class TooSlow(UsageError):
    status = 408
    default_code = "request_timeout"


class MethodNotAllowed(UsageError):
    status = 405
    default_code = "method_not_allowed"


def error_body(error: UmbelError) -> dict[str, Any]:
    """The error object for a client; also what a stream sends when it fails midway."""
    message, hint = _KEPT_BACK.get(error.code, error.message), error.hint
    if error.code == UmbelError.default_code:
        message, hint = "the server failed.", "try again; if it stays, look for the request id in the server's log"
    text = f"{message} Fix: {over_http(hint)}" if hint else message
    return {"error": {"message": text, "type": error.type, "param": error.param, "code": error.code}}


def error_reply(error: UmbelError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(error), error.status, {**error_headers(error), **(headers or {})})


def error_headers(error: UmbelError) -> dict[str, str]:
    """SDKs retry 409, 429 and 5xx by themselves; they must not where that cannot help."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after * 1000))
    if error.status == 409 or (error.status == 503 and error.retry_after is None):
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def from_validation(
    errors: Sequence[Mapping[str, Any]], known: Sequence[str] = (), content_type: str = ""
) -> UmbelError:
    """The first of pydantic's errors; ``param`` names the field. ``known``: what the body may hold."""
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # mistyped: also missing
    cause = first.get("ctx", {}).get("error")
    where = [str(part) for part in first["loc"][1:]]
    param = ".".join(_plain(where)) or None
    if isinstance(cause, UmbelError):
        cause.param = cause.param or param
        return cause
    if first["type"] == "json_invalid":
        return _no_json(first)
    if not where and "json" not in content_type:
        return UsageError(
            "the body was not sent as JSON.", code="invalid_json", hint="send the header Content-Type: application/json"
        )
    if first["type"] == "extra_forbidden":
        missing = [str(each["loc"][-1]) for each in errors if each["type"] == "missing" and len(each["loc"]) == 2]
        return _unknown(where, known, missing)
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 and first["type"] == "missing" else ""
    if first["type"] == "missing":
        hint = f"add {param}; /openapi.json tells every field" if param else "send a JSON object"
        return UsageError(f"{param or 'the body'} is missing{more}.", code="missing_field", param=param, hint=hint)
    if any(each["type"] == "too_short" and not each["ctx"]["actual_length"] for each in errors):
        return UsageError(f"{param} is empty.", code="invalid_value", param=param, hint="send at least one")
    found = {each["msg"]: None for each in errors if _plain([str(part) for part in each["loc"][1:]]) == _plain(where)}
    told = " or ".join(msg.removeprefix("Input should be ") if at else msg for at, msg in enumerate(found))
    hint = "/openapi.json tells what every field takes"
    return UsageError(f"{param or 'the body'}: {told}.", code="invalid_value", param=param, hint=hint)


def _no_json(error: Mapping[str, Any]) -> UsageError:
    """What the parser met and after how many characters, where it tells."""
    met, at = str(error.get("ctx", {}).get("error", "")), error["loc"][-1]
    where = f": {met} (character {at})" if met and isinstance(at, int) else ""
    return UsageError(
        f"the body is not valid JSON{where}.", code="invalid_json", hint="check quotes, commas and brackets there"
    )


def _plain(where: Sequence[str]) -> list[str]:
    """Without the names that pydantic gives to the members of a union."""
    return [part for part in where if part.replace("_", "").isalnum() and part not in ("str", "int", "float", "bool")]


def _unknown(where: Sequence[str], known: Sequence[str], missing: Sequence[str]) -> UsageError:
    """The one field that is missing is what an unlike name (text for input) was meant to be."""
    near = get_close_matches(where[-1], known, 1) or missing if len(where) == 1 else []
    return UsageError(
        f"there is no field {'.'.join(_plain(where))!r}.",
        code="unknown_field",
        param=".".join(_plain(where)),
        hint=f"did you mean {near[0]}?" if len(near) == 1 else "remove it",
    )


def from_status(status: int, method: str, path: str, *, allowed: str = "", known: Sequence[str] = ()) -> UmbelError:
    """For what the router itself refuses. ``allowed``: methods that the path takes; ``known``: paths that there are."""
    if status == 405:
        hint = f"send {allowed}; /openapi.json tells what" if allowed else "/openapi.json tells how"
        return MethodNotAllowed(f"{path} does not take {method}.", hint=hint)
    if status == 404 and path.startswith("/v1/responses"):
        return NotFound("umbel does not serve /v1/responses yet.", code="not_served", hint="use /v1/chat/completions")
    if status == 404:
        near = get_close_matches(path, [one for one in known if "{" not in one], 1, cutoff=_ALIKE)
        meant = f"did you mean {near[0]}? " if near else ""
        return NotFound(
            f"there is no route {path}.", code="route_not_found", hint=f"{meant}/openapi.json lists those there are"
        )
    return UsageError("the request could not be read.", hint="/openapi.json tells how")
