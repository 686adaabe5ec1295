"""Every error a user can meet, in one tree.

    UmbelError                      500  exit 1
    ├── UsageError                  400  exit 2   the request or the command line is wrong
    │   ├── ConfigError                           a config field, task file or template is wrong
    │   ├── DataError                             a dataset row or file is wrong (names line and form)
    │   └── AdapterRefused                        a folder is not an adapter that can be trusted
    ├── AuthError                   401  exit 1   a key is missing, unknown or revoked
    ├── NotAllowed                  403  exit 1   the key lacks a scope
    ├── NotFound                    404  exit 3   no such adapter, version, alias, run, backbone
    ├── Conflict                    409  exit 4   somebody else changed it, or the name is taken
    ├── GateFailed                  422  exit 5   a `--gate` condition does not hold
    ├── Overloaded                  503  exit 1   full queue or no memory; says when to retry
    ├── Unavailable                 503  exit 1   a part that the request needs is not there (yet)
    └── Interrupted                 499  exit 130 Ctrl-C or SIGTERM; what there was is saved

Each carries a stable snake_case ``code``, a message that says what, where and why, and a ``hint``: the
command or change that fixes it.
"""

from typing import ClassVar


class UmbelError(Exception):
    """Base of all; ``status`` is the HTTP status, ``exit_code`` the CLI's."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.param = param
        """Name of the wrong field of a request, as OpenAI's errors have it."""
        self.retry_after = retry_after
        """Seconds to wait before another try, where waiting can help."""
        self.request_id: str | None = None
        """Of the HTTP request that met it, in the client's exceptions."""

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.hint}" if self.hint else self.message


class UsageError(UmbelError, ValueError):
    status = 400
    exit_code = 2
    default_code = "invalid_request"
    type = "invalid_request_error"


class ConfigError(UsageError):
    default_code = "invalid_config"


class DataError(UsageError):
    default_code = "invalid_data"


class AdapterRefused(UsageError):
    default_code = "adapter_refused"


class AuthError(UmbelError):
    status = 401
    default_code = "invalid_api_key"
    type = "authentication_error"


class NotAllowed(UmbelError):
    status = 403
    default_code = "insufficient_scope"
    type = "permission_error"


class NotFound(UmbelError, LookupError):
    status = 404
    exit_code = 3
    default_code = "not_found"
    type = "not_found_error"


class Conflict(UmbelError):
    status = 409
    exit_code = 4
    default_code = "conflict"
    type = "conflict_error"


class GateFailed(UmbelError):
    status = 422
    exit_code = 5
    default_code = "gate_failed"
    type = "invalid_request_error"


class Overloaded(UmbelError):
    status = 503
    default_code = "overloaded"


class Unavailable(UmbelError):
    status = 503
    default_code = "unavailable"


class Interrupted(UmbelError):
    status = 499
    exit_code = 130
    default_code = "interrupted"
