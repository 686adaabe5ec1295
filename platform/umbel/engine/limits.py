"""What the engine can hold, and the refusals that name both numbers."""

from dataclasses import dataclass

from umbel.adapters.adapter import Adapter
from umbel.core.contract import OutputHead
from umbel.core.errors import Overloaded, UsageError
from umbel.engine.requests import GenerateRequest, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_rows: int
    """Rows that run at once."""
    max_length: int
    """Most positions of one row: virtual tokens, prompt and generated ones."""
    max_waiting: int
    """Requests that may wait; one more is told to come back, unless its adapter has less than its share of them."""
    step_tokens: int
    """Tokens of one step: one per decoding row, the rest for prompts."""
    lookahead: int
    """Adapters loaded ahead for waiting requests."""
    patience: int
    """How many may be admitted past a request that lacks memory before all wait for it."""
    vocabulary: int

    def check(self, request: Request) -> None:
        """Raises UsageError for a request that could never run, whatever the adapter."""
        if not request.tokens:
            raise UsageError(
                "the prompt is empty.", code="empty_prompt", param="prompt", hint="send at least one token"
            )
        least, most = min(request.tokens), max(request.tokens)
        if least < 0 or most >= self.vocabulary:
            raise UsageError(
                f"token {least if least < 0 else most} is outside the vocabulary of {self.vocabulary}.",
                code="invalid_token",
                param="prompt",
                hint=f"send ids from 0 to {self.vocabulary - 1}, as /tokenize gives them",
            )
        if isinstance(request, GenerateRequest):
            _check_sampling(request, self.vocabulary)
        self.check_length(request, virtual=0)

    def check_length(self, request: Request, *, virtual: int) -> int:
        """Tokens that may be generated; UsageError if prompt and ``max_tokens`` do not fit."""
        prompt, asked = len(request.tokens), request.max_tokens if isinstance(request, GenerateRequest) else 0
        left = self.max_length - virtual - prompt
        least = 1 if asked is None else asked
        if left >= least:
            return left if asked is None else asked
        extra = f" and the adapter's {virtual} virtual tokens" if virtual else ""
        raise UsageError(
            f"the prompt has {prompt} tokens{extra}, and {least} more were asked for: "
            f"{prompt + virtual + least} in all, the limit is {self.max_length}.",
            code="context_length_exceeded",
            param="prompt",
            hint="shorten the prompt or lower max_tokens",
        )

    def overloaded(self, waiting: int, retry_after: float) -> Overloaded:
        return Overloaded(
            f"{waiting} requests wait already, the limit is {self.max_waiting}.",
            code="queue_full",
            hint=f"try again in {retry_after:.0f} s",
            retry_after=retry_after,
        )


def _check_sampling(request: GenerateRequest, vocabulary: int) -> None:
    def refuse(name: str, value: object, rule: str) -> None:
        raise UsageError(f"{name} {value} {rule}.", code="invalid_value", param=name)

    if request.max_tokens is not None and request.max_tokens < 0:
        refuse("max_tokens", request.max_tokens, "is negative")
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        refuse("min_tokens", request.min_tokens, f"is more than max_tokens {request.max_tokens}")
    if not 0.0 <= request.temperature <= 100.0:
        refuse("temperature", request.temperature, "is not between 0 and 100")
    if not 0.0 < request.top_p <= 1.0:
        refuse("top_p", request.top_p, "is not above 0 and at most 1")
    if request.top_k < 0:
        refuse("top_k", request.top_k, "is negative; 0 keeps every token")
    if request.logprobs is not None and not 0 <= request.logprobs <= vocabulary:
        refuse("logprobs", request.logprobs, f"is not between 0 and {vocabulary}")
    if any(not 0 <= token < vocabulary for token in request.stop_token_ids):
        refuse("stop_token_ids", list(request.stop_token_ids), f"leaves the vocabulary of {vocabulary}")


def check_head(adapter: Adapter, request: Request) -> None:
    """Raises UsageError where the adapter's output head does not do what is asked."""
    head = adapter.contract.output_head
    if isinstance(request, GenerateRequest) == (head is OutputHead.GENERATE):
        return
    routes = {
        OutputHead.GENERATE: "/v1/completions or /v1/chat/completions",
        OutputHead.CLASSIFY: "/v1/classify",
        OutputHead.REGRESS: "/v1/score",
        OutputHead.TAG: "/v1/tag",
        OutputHead.EMBED: "/v1/embeddings",
    }
    raise UsageError(
        f"adapter {adapter.name or adapter.digest} has the output head {head}.",
        code="wrong_output_head",
        param="model",
        hint=f"send it to {routes[head]}",
    )
