"""What a server tells about itself, and its tokenizer."""

from typing import Annotated

from pydantic import Field, StrictInt, StrictStr, model_validator

from umbel.core.errors import UsageError
from umbel.core.wire.base import Reply, Request
from umbel.core.wire.chat import Message


class TokenizeRequest(Request):
    """``prompt`` as ``/v1/completions`` would send it, or ``messages`` in the backbone's chat template."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise UsageError("send either prompt or messages.", param="prompt")
        return self


class TokenizeReply(Reply):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(Request):
    model: StrictStr | None = None
    tokens: list[Annotated[StrictInt, Field(ge=0)]]


class DetokenizeReply(Reply):
    prompt: str


class TokenizerInfo(Reply):
    """What lm-eval asks before it sends token ids."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    chat_template: str | None = None


class Ready(Reply):
    """``ready`` is false while starting and while draining; ``reasons`` says what is missing."""

    ready: bool
    reasons: list[str]


class Resident(Reply):
    """One adapter in the bank."""

    adapter: str | None
    """``name:3`` as it was first asked for; None where it was loaded ahead and nobody asked yet."""
    digest: str


class Status(Reply):
    """What ``umbel ps`` shows. Bytes are those beside the backbone's own."""

    backbone: str
    fingerprint: str
    dtype: str
    quantised: str | None = None
    """Form of the backbone's linears: int8, int4 or nf4; None where they are as in the checkpoint."""
    version: str
    uptime_seconds: float
    draining: bool
    running: int
    waiting: int
    max_rows: int
    kv_bytes: int
    kv_bytes_used: int
    """Reserved for the answers of running rows."""
    adapter_bytes: int
    adapter_bytes_used: int
    adapters_worn: int
    """Residents that a running row wears."""
    adapters_loading: int
    evictions: int
    finished: dict[str, int]
    """Rows by how they ended, since the start."""
    resident: list[Resident]
