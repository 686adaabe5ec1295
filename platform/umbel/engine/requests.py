"""What is asked of the engine and what it says back: plain frozen values, no tensors of the step.

A request is submitted once and answered through its ``Handle`` by events, in this order:

    GenerateRequest   Prompt? (echo with logprobs)  Token*  Finished
    PoolRequest       Pooled                        Finished

``Finished`` is always the last event and always comes; with an error, events before it may be missing.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from umbel.core.errors import UmbelError

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""``stop``: end of text, a stop token or a stop string; pooling always. ``length``: ``max_tokens`` are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Tokens to continue. Its fields mean what OpenAI's ``/v1/completions`` and vLLM's extras mean by them."""

    tokens: tuple[int, ...]
    """The prompt's ids, special tokens included, virtual tokens not."""
    adapter: str | None = None
    """Digest of a version whose output head is ``generate``; None is the bare backbone."""
    tenant: str = ""
    """Whose request it is: keys and values of prompts are shared between requests of one tenant only."""
    max_tokens: int | None = 16
    """Most tokens generated. 0 generates none (with ``echo`` and ``logprobs``: scores the prompt). None: what fits."""
    min_tokens: int = 0
    """Before so many, neither end of text nor a stop ends the row; their tokens cannot be sampled."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; no part of one is ever in a delta."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    """The same seed, prompt and adapter draw the same tokens in any company; None draws a seed."""
    logprobs: int | None = None
    """Log-probabilities of the chosen tokens and of so many likeliest, before temperature, top_p and top_k."""
    echo: bool = False
    """With ``logprobs``: a ``Prompt`` event with the prompt's own. The prompt's text is the caller's to repeat."""
    deadline: float | None = None
    """An instant of ``time.monotonic()``; later the request fails with ``deadline_exceeded``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest:
    """Tokens for an output head: classify, regress, tag or embed."""

    tokens: tuple[int, ...]
    """Already cut to the contract's length; the engine never truncates."""
    adapter: str
    """Digest of a version whose output head is not ``generate``."""
    tenant: str = ""
    """As of ``GenerateRequest``."""
    deadline: float | None = None


Request = GenerateRequest | PoolRequest


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the likeliest tokens at a place."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Scored:
    """One token of the prompt with its log-probability; None at the first, which nothing predicts."""

    token: int
    logprob: float | None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Log-probabilities of the prompt's tokens, one entry each."""

    scores: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. Deltas joined are the whole text; a delta is empty while a character or stop is unsure."""

    token: int
    text: str
    logprob: float | None = None
    """None unless the request asked for ``logprobs``."""
    top: tuple[Alternative, ...] = ()
    """Likeliest first, ``logprobs`` many."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The output head's raw logits on CPU, at least fp32: [outputs], or [tokens, outputs] where it reads each token.

    Virtual tokens have no row.
    """

    logits: Tensor


@dataclass(frozen=True, slots=True)
class Usage:
    """Counted tokens; virtual ones are not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those whose keys and values were kept from an earlier request."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in milliseconds. Waiting for the adapter's load is not part of ``queue_ms``."""

    queue_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of every request."""

    reason: FinishReason
    usage: Usage = Usage()
    timing: Timing = Timing()
    error: UmbelError | None = None
    """Why, exactly if the reason is ``error``."""


Event = Prompt | Token | Pooled | Finished


@dataclass(slots=True)
class Answer:
    """All events of a request put together."""

    finished: Finished
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Scored, ...] = ()
    logits: Tensor | None = None

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    @classmethod
    def of(cls, events: list[Event]) -> "Answer":
        """Raises the request's own error if it failed."""
        finished = events[-1]
        assert isinstance(finished, Finished)
        if finished.error is not None:
            raise finished.error
        answer = cls(finished)
        for event in events:
            if isinstance(event, Token):
                answer.tokens.append(event)
            elif isinstance(event, Prompt):
                answer.prompt = event.scores
            elif isinstance(event, Pooled):
                answer.logits = event.logits
        answer.text = "".join(token.text for token in answer.tokens)
        return answer
