"""Routes whose answer is an output head's, not text: classify, score, tag, embeddings."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, StrictInt, StrictStr, model_serializer, model_validator

from umbel.core.errors import UsageError
from umbel.core.wire.base import Reply, Request, SafetyIdentifier, Usage, without_effect

MAX_TEXTS = 2048
MAX_MODELS = 32

Item = TypeVar("Item")

ModelName = Annotated[StrictStr, Field(min_length=1, max_length=300)]
Models = ModelName | Annotated[list[ModelName], Field(min_length=1, max_length=MAX_MODELS)]
Texts = StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_TEXTS)]


class PooledRequest(Request):
    model: Models
    """One model, or a list: the answer is then keyed by model."""
    safety_identifier: SafetyIdentifier = None
    """Who asks, without saying who: the unit of experiments where the header X-Experiment-Unit is not sent."""
    user: Any = without_effect("who asks is known by the key")

    @model_validator(mode="after")
    def _distinct(self) -> "PooledRequest":
        if len(set(self.models)) != len(self.models):
            raise UsageError("model names one adapter twice.", param="model", hint="name each once")
        return self

    @property
    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model


class TextsRequest(PooledRequest):
    input: Texts

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassifyRequest(TextsRequest):
    abstain_below: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    """Give no label where the likeliest one is less probable than this; the adapter's own bound where left out."""


class ScoreRequest(TextsRequest):
    pass


class TagRequest(PooledRequest):
    """``input`` is a text, a list of texts, or a list of lists of words. A list of words goes inside another list."""

    input: StrictStr | Annotated[list[StrictStr | list[StrictStr]], Field(min_length=1, max_length=MAX_TEXTS)]

    @property
    def inputs(self) -> list[str | list[str]]:
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingsRequest(PooledRequest):
    input: (
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[StrictInt], Field(min_length=1)]
        | Annotated[list[list[StrictInt]], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    """Keep so many leading values, and bring the rest back to length 1."""

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class PooledReply(Reply, Generic[Item]):
    """``data`` for one model, ``results`` (keyed by what the request named) for a list of models."""

    object: Literal["list"] = "list"
    model: str | None = None
    """``name:3``, as resolved; None where several were asked."""
    data: list[Item] | None = None
    results: dict[str, list[Item]] | None = None
    usage: Usage

    @model_serializer(mode="wrap")
    def _one_of_two(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


class Classified(Reply):
    index: int
    label: str | list[str] | None
    """A list for a multi-label adapter; None where the answer abstains."""
    abstained: bool = False
    """No label is likely enough; ``probs`` are there all the same."""
    probs: list[float]
    labels: list[str]
    """The order of ``probs``."""
    num_classes: int
    truncated: bool
    """The text was longer than the adapter's ``max_length`` and was cut."""


class Scored(Reply):
    index: int
    score: float
    truncated: bool = False


class TaggedWord(Reply):
    word: str
    start: int
    """Characters of the input text, or of its words joined by spaces: [start, end)."""
    end: int
    tag: str
    prob: float


class Tagged(Reply):
    index: int
    tags: list[TaggedWord]
    truncated: bool = False
    """Words after ``max_length`` have no tag."""


class Embedded(Reply):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """A string is base64 of little-endian float32."""


class ClassifyReply(PooledReply[Classified]):
    pass


class ScoreReply(PooledReply[Scored]):
    pass


class TagReply(PooledReply[Tagged]):
    pass


class EmbeddingsReply(PooledReply[Embedded]):
    pass
