"""The fields that both generating routes share."""

from typing import Annotated, Any

from pydantic import Field, StrictInt, StrictStr, field_validator

from umbel.core.errors import UsageError
from umbel.core.wire.base import Request, SafetyIdentifier, refused, without_effect

MAX_STOPS = 16

Stop = Annotated[StrictStr, Field(min_length=1, max_length=1000)]


class StreamOptions(Request):
    include_usage: bool = False
    """A last chunk with no choices and the usage of the whole request."""
    include_obfuscation: Any = without_effect("chunks are not padded")


class SamplingRequest(Request):
    """What is left out comes from the adapter's contract; the bare backbone has the contract's own defaults."""

    model: Annotated[StrictStr, Field(min_length=1, max_length=300)]
    """The backbone's name, ``name``, ``name:3``, ``name@alias`` or ``name@sha256:...``."""
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    """0 and -1 keep every token."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False
    seed: StrictInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    safety_identifier: SafetyIdentifier = None
    """Who asks, without saying who: the unit of experiments where the header X-Experiment-Unit is not sent."""
    user: Any = without_effect("who asks is known by the key")

    n: Any = refused("one choice is made for each prompt", 1)
    logit_bias: Any = refused("the sampler has no biases yet", {})
    frequency_penalty: Any = refused("the sampler has no penalties yet", 0, 0.0)
    presence_penalty: Any = refused("the sampler has no penalties yet", 0, 0.0)

    @field_validator("stream_options")
    @classmethod
    def _only_streaming(cls, options: StreamOptions | None, info: Any) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise UsageError(
                "stream_options without stream.", param="stream_options", hint="set stream to true, or leave it out"
            )
        return options

    @property
    def stops(self) -> tuple[str, ...] | None:
        """None where the request does not say, so that the contract's stand."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
