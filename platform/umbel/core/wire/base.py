"""What all wire models share: strict requests, lenient replies, and fields that are known but not served."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, StringConstraints, ValidationInfo, field_validator

from umbel.core.errors import UsageError

_REQUEST_ID = "_request_id"
"""Kept as ``functools.cached_property`` keeps its value, which neither equality nor JSON sees."""

SEND_KEY = "send the header Authorization: Bearer KEY"
"""The server's fix for a request without a key; the Python client says how it is given one instead."""

MAX_UNIT = 256
"""Longest unit of an experiment, in characters."""

Unit = Annotated[StrictStr, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_UNIT)]
"""Whom an experiment treats alike: a user, a session, a document."""
SafetyIdentifier = Annotated[StrictStr, StringConstraints(strip_whitespace=True, max_length=MAX_UNIT)] | None


class Request(BaseModel):
    """A body that refuses unknown fields, NaN and infinities, and known fields that umbel does not serve."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _served(cls, value: Any, info: ValidationInfo) -> Any:
        marked = cls.model_fields[str(info.field_name)].json_schema_extra
        if not isinstance(marked, dict) or "refused" not in marked or value is None or _is_one_of(value, marked):
            return value
        raise UsageError(
            f"{info.field_name} is not served: {marked['refused']}.",
            code="unsupported_parameter",
            param=info.field_name,
            hint=f"leave {info.field_name} out",
        )


def _is_one_of(value: Any, marked: Mapping[str, Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in marked["neutral"])


class Reply(BaseModel):
    """An answer; fields that a newer server adds are ignored."""

    model_config = ConfigDict(extra="ignore", from_attributes=True)

    @property
    def request_id(self) -> str | None:
        """In a client: of the answer that this came in, as ``client.feedback`` takes it. No part of the value."""
        found: str | None = self.__dict__.get(_REQUEST_ID)
        return found

    def came_in(self, request_id: str | None) -> None:
        self.__dict__[_REQUEST_ID] = request_id


def refused(why: str, *neutral: Any) -> Any:
    """A field of OpenAI's that is not served: null and ``neutral`` values pass, others are told why.

    Silence would be an answer that looks right and is not.
    """
    return Field(
        default=None, description=f"Refused: {why}.", json_schema_extra={"refused": why, "neutral": list(neutral)}
    )


def without_effect(why: str) -> Any:
    """A field that is accepted and changes nothing."""
    return Field(default=None, description=f"Accepted, without effect: {why}.")


class PromptDetails(Reply):
    """What the prompt's tokens were."""

    cached_tokens: int = 0
    """Those that an earlier request of the same key to the same version began with, so that they were not computed."""


class Usage(Reply):
    """Counted tokens; virtual ones are not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails = PromptDetails()

    @classmethod
    def of(cls, prompt: int, completion: int = 0, *, cached: int = 0) -> "Usage":
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )

    @classmethod
    def total(cls, usages: "Sequence[Usage]") -> "Usage":
        """Summed up."""
        return cls.of(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            cached=sum(usage.prompt_tokens_details.cached_tokens for usage in usages),
        )


class ErrorBody(Reply):
    """OpenAI's error object. The fix is part of the message."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Reply):
    error: ErrorBody


class Model(Reply):
    """One entry of ``/v1/models``: the backbone, an adapter by the version that its bare name means now, or a running
    experiment."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "umbel"
    parent: str | None = None
    """Name of the backbone; None for the backbone itself."""
    root: str | None = None
    """``name:3``, or the backbone's name."""
    digest: str | None = None
    output_head: str | None = None
    method: str | None = None
    state: str | None = None
    """Of a version: ready, or deprecated, which answers as before with a word of warning."""
    reason: str | None = None
    """Why it is in this state."""
    quantised: str | None = None
    """Form of the backbone's linears here (int8, int4 or nf4); of a version the form that it was trained on."""
    arms: dict[str, str] | None = None
    """Of a running experiment: the version of each arm, the control first."""
    shutdown_date: str | None = None


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[Model]
