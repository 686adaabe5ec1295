"""``/v1/chat/completions``."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    StrictStr,
    field_validator,
    model_serializer,
)

from umbel.core.errors import UsageError
from umbel.core.wire.base import Reply, Request, Usage, refused, without_effect
from umbel.core.wire.sampling import SamplingRequest

_NO_TOOLS = "tools do not exist in umbel yet"
_TEXT_ONLY = "a Llama backbone reads and writes text only"
_BOOKKEEPING = "umbel keeps no such record"


class TextPart(Request):
    """The one kind of content part that a text model reads."""

    type: Literal["text"]
    text: StrictStr


class Message(Request):
    role: Literal["system", "developer", "user", "assistant"]
    """``developer`` is read as ``system``."""
    content: StrictStr | Annotated[list[TextPart], Field(min_length=1)]
    name: Any = without_effect("chat templates of Llama models have no names")
    refusal: Any = refused(_TEXT_ONLY)
    audio: Any = refused(_TEXT_ONLY)
    annotations: Any = refused(_TEXT_ONLY, [])
    tool_calls: Any = refused(_NO_TOOLS, [])
    function_call: Any = refused(_NO_TOOLS)

    @field_validator("content", mode="before")
    @classmethod
    def _readable(cls, content: Any) -> Any:
        parts = content if isinstance(content, list) else []
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise UsageError(
                    f"a content part of type {kind!r} cannot be read: {_TEXT_ONLY}.",
                    code="unsupported_content",
                    param="messages",
                    hint='send the content as a string, or as parts {"type": "text", "text": ...}',
                )
        if not isinstance(content, str | list):
            raise UsageError("content must be a text.", code="invalid_content", param="messages")
        return content

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ChatRequest(SamplingRequest):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """OpenAI's newer name of ``max_tokens``; stands above it."""
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    metadata: Any = without_effect(_BOOKKEEPING)
    store: Any = without_effect(_BOOKKEEPING)
    service_tier: Any = without_effect("there is one tier")
    prompt_cache_key: Any = without_effect("there is no prompt cache")
    prompt_cache_options: Any = without_effect("there is no prompt cache")
    prompt_cache_retention: Any = without_effect("there is no prompt cache")
    prediction: Any = without_effect("it only ever makes an answer faster")

    tools: Any = refused(_NO_TOOLS, [])
    tool_choice: Any = refused(_NO_TOOLS, "none", "auto")
    parallel_tool_calls: Any = refused(_NO_TOOLS, False, True)
    functions: Any = refused(_NO_TOOLS, [])
    function_call: Any = refused(_NO_TOOLS, "none", "auto")
    response_format: Any = refused("answers are not forced into a form", {"type": "text"})
    audio: Any = refused(_TEXT_ONLY)
    modalities: Any = refused(_TEXT_ONLY, ["text"])
    reasoning_effort: Any = refused("the backbone does not reason apart", "none")
    verbosity: Any = refused("a Llama backbone has no such setting", "medium")
    moderation: Any = refused("there is no moderation model")
    web_search_options: Any = refused("the server asks nobody else")

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top: int | None, info: Any) -> int | None:
        if top is not None and not info.data.get("logprobs"):
            raise UsageError("top_logprobs without logprobs.", param="top_logprobs", hint="set logprobs to true")
        return top

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprob]


class ReplyMessage(Reply):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(Reply):
    index: int = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage

    @property
    def text(self) -> str:
        return self.choices[0].message.content


class Delta(Reply):
    """What is added; a field that is not there is not sent either, as OpenAI does it."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _only_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


class ChunkChoice(Reply):
    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Reply):
    """One event of a stream; the last one of ``include_usage`` has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What this chunk adds."""
        return "".join(choice.delta.content or "" for choice in self.choices)
