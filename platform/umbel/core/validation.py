"""pydantic's errors as ours. A validator that raises an UmbelError has it wrapped: code and hint would be lost."""

from pydantic import ValidationError

from umbel.core.errors import ConfigError, UmbelError


def told(error: ValidationError) -> UmbelError:
    """The error that a validator raised, or a ConfigError naming the first wrong field; ``param`` is its path."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UmbelError):
        return cause
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"{error.title} has no {path!r}{more}.", code="unknown_key", param=path, hint=f"remove {path}"
        )
    told = first["msg"].removeprefix("Input ")  # "should be ..."
    between = ": " if told == first["msg"] else " "
    return ConfigError(f"{path or 'it'}{between}{told}{more}.", param=path or None)
