"""``/v1/completions``: text or token ids as they are, continued."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt, StrictStr

from umbel.core.errors import UsageError
from umbel.core.wire.base import Reply, Usage, refused
from umbel.core.wire.sampling import SamplingRequest

MAX_PROMPTS = 256

_Id = Annotated[StrictInt, Field(ge=0)]


def _prompt(value: Any) -> Any:
    """One message for all that a prompt cannot be; pydantic would tell one error for each form."""
    items = value if isinstance(value, list) else [value]
    one = isinstance(value, str) or (bool(items) and all(map(_is_id, items)) and isinstance(value, list))
    many = isinstance(value, list) and bool(items) and (all(map(_is_text, items)) or all(map(_is_ids, items)))
    if not (one or many):
        raise UsageError(
            "prompt is none of its four forms.",
            code="invalid_prompt",
            param="prompt",
            hint="send a text, a list of texts, a list of token ids, or a list of lists of token ids; none empty",
        )
    if many and len(items) > MAX_PROMPTS:
        raise UsageError(f"{len(items)} prompts; at most {MAX_PROMPTS} go in one request.", param="prompt")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def _is_id(value: object) -> bool:
    return type(value) is int and value >= 0


class CompletionRequest(SamplingRequest):
    prompt: Annotated[StrictStr | list[StrictStr] | list[_Id] | list[list[_Id]], BeforeValidator(_prompt)]
    echo: bool | None = None
    """The prompt's text before the answer, and with ``logprobs`` its tokens' own."""
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    best_of: Any = refused("one choice is made for each prompt", 1)
    suffix: Any = refused("a Llama backbone cannot fill in the middle")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One item for each choice of the answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class CompletionLogprobs(Reply):
    """Four lists of one length: an entry for each token, the prompt's first if it was echoed."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None only for the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionReply(Reply):
    """Also each chunk of a stream, where ``usage`` is in the last one only."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Of the first prompt; of a chunk, what it adds."""
        return self.choices[0].text if self.choices else ""
