"""The contract of an adapter: all that a caller must know and that travels with the weights.

Training text is serving text, so whatever turns a user's text into tokens is stored here once and read by both sides.
"""

from enum import Enum, StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from umbel.core.errors import ConfigError
from umbel.core.forms import Form

TEXT_SLOT = "{text}"


class OutputHead(StrEnum):
    """What hidden states become."""

    GENERATE = "generate"
    CLASSIFY = "classify"
    REGRESS = "regress"
    TAG = "tag"
    EMBED = "embed"


class Decoding(BaseModel):
    """Defaults of generation; a request may override each of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps every token."""
    stop: tuple[str, ...] = ()


class Contract(BaseModel):
    """How texts enter an adapter and what its answers mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_head: OutputHead
    input_form: Literal["prompt", "messages"] = "prompt"
    """``messages`` rows use the backbone's own chat template; ``prompt`` rows use ``template``."""
    template: str = TEXT_SLOT
    """A plain string with one ``{text}`` slot; never a program."""
    add_special_tokens: bool = False
    """Whether the tokenizer's own special tokens (BOS) are put around the filled template."""
    max_length: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one input; virtual tokens not counted."""
    truncation_side: Literal["left", "right"] = "right"
    """Which end of a longer text is cut, where cutting is allowed (never for generation, which refuses)."""
    labels: tuple[str, ...] = ()
    """Order of the output head's rows (classify, tag)."""
    multi_label: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Multi-label: probability from which a label is given."""
    abstain_below: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Classify: below this probability of the best label the answer is null."""
    decoding: Decoding = Decoding()
    description: str = ""
    quantised: Form | None = Field(default=None, exclude_if=lambda form: form is None)
    """Form of the backbone's linears that it was trained on. Not written where none: digests stay as they were."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.template.count(TEXT_SLOT) != 1:
            raise ConfigError(
                f"template {self.template!r} has {self.template.count(TEXT_SLOT)} slots.",
                code="invalid_template",
                hint="write exactly one {text} in it",
            )
        named = self.output_head in (OutputHead.CLASSIFY, OutputHead.TAG)
        if named and len(self.labels) < (1 if self.multi_label else 2):
            raise ConfigError(
                f"{self.output_head} needs at least two labels, got {list(self.labels)}.",
                code="missing_labels",
                hint="give rows with another label; --labels names those that may come, in their order",
            )
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"labels repeat: {list(self.labels)}.", code="duplicate_labels")
        return self

    def fill(self, text: str) -> str:
        """The text that is tokenised. A replace, not ``str.format``: braces in the text stay as they are."""
        return self.template.replace(TEXT_SLOT, text)


def shown(value: object) -> str:
    """A part of a contract as a person reads it: a text in quotes, a word or a list without."""
    if isinstance(value, Enum | BaseModel):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else repr(value)
