"""The client for ordinary code."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from umbel.client import calls
from umbel.client.adapters import Adapters
from umbel.client.calls import Call, Messages, Models, Prompts, Texts
from umbel.client.experiments import Experiments, feedback
from umbel.client.wire import answer_of, error_of, event_of, is_answer, lost, request_of, settings, wait_before_retry
from umbel.core.errors import UmbelError
from umbel.core.wire.base import Model, ModelList
from umbel.core.wire.chat import ChatChunk, ChatReply
from umbel.core.wire.completions import CompletionReply
from umbel.core.wire.experiments import FeedbackReply
from umbel.core.wire.pooled import ClassifyReply, EmbeddingsReply, ScoreReply, TagReply
from umbel.core.wire.server import Ready, Status, TokenizeReply

T = TypeVar("T")


class Client:
    """Talks to one server; thread-safe. Every method raises the errors of ``umbel.core.errors``, with ``request_id``.

    ``base_url`` defaults to ``UMBEL_URL``, then to http://127.0.0.1:8000; ``api_key`` to ``UMBEL_API_KEY``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._http = httpx2.Client(**settings(base_url, api_key, timeout), transport=transport)
        self.adapters = Adapters(self.send)
        self.experiments = Experiments(self.send)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def url(self) -> str:
        """Of the server, wherever it was said."""
        return str(self._http.base_url)

    def send(self, call: Call[T]) -> T:
        """Sends it, again where that can help."""
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(call)
            except UmbelError as error:
                wait = wait_before_retry(call, error, tries)
                if wait is None:
                    raise
                time.sleep(wait)

    def _once(self, call: Call[T]) -> T:
        try:
            response = self._http.request(**request_of(call))
        except httpx2.TransportError as error:
            raise lost(error, str(self._http.base_url)) from error
        if not is_answer(call, response):
            raise error_of(response)
        return answer_of(call, response.content, response.headers)

    def stream(self, call: Call[T]) -> Iterator[T]:
        """Events as they come. Leaving the loop closes the connection, and the server stops generating."""
        try:
            with self._http.stream(**request_of(call)) as response:
                if not response.is_success:
                    response.read()
                    raise error_of(response)
                for line in response.iter_lines():
                    event = event_of(call, line, response.headers)
                    if event is not None:
                        yield event
        except httpx2.TransportError as error:
            raise lost(error, str(self._http.base_url)) from error

    def models(self) -> ModelList:
        return self.send(calls.models())

    def model(self, name: str) -> Model:
        return self.send(calls.model(name))

    def chat(self, model: str, messages: Messages, unit: str | None = None, **options: Any) -> ChatReply:
        """``options`` are OpenAI's fields: ``max_tokens``, ``temperature``, ``seed``, ``logprobs`` ..."""
        return self.send(calls.for_unit(calls.chat(model, messages, options), unit))

    def chat_stream(
        self, model: str, messages: Messages, unit: str | None = None, **options: Any
    ) -> Iterator[ChatChunk]:
        return self.stream(calls.for_unit(calls.chat_stream(model, messages, options), unit))

    def complete(self, model: str, prompt: Prompts, unit: str | None = None, **options: Any) -> CompletionReply:
        return self.send(calls.for_unit(calls.complete(model, prompt, options), unit))

    def complete_stream(
        self, model: str, prompt: Prompts, unit: str | None = None, **options: Any
    ) -> Iterator[CompletionReply]:
        return self.stream(calls.for_unit(calls.complete_stream(model, prompt, options), unit))

    def classify(
        self, model: Models, input: Texts, *, abstain_below: float | None = None, unit: str | None = None
    ) -> ClassifyReply:
        """``data`` for one model; for a list of them ``results``, keyed by model.

        ``abstain_below``: give no label that is less probable; the adapter's own bound where left out.
        """
        return self.send(calls.for_unit(calls.classify(model, input, abstain_below), unit))

    def score(self, model: Models, input: Texts, *, unit: str | None = None) -> ScoreReply:
        return self.send(calls.for_unit(calls.score(model, input), unit))

    def tag(self, model: Models, input: Texts | Sequence[Sequence[str]], *, unit: str | None = None) -> TagReply:
        return self.send(calls.for_unit(calls.tag(model, input), unit))

    def embed(
        self, model: Models, input: Texts, *, dimensions: int | None = None, unit: str | None = None
    ) -> EmbeddingsReply:
        return self.send(calls.for_unit(calls.embed(model, input, dimensions), unit))

    def feedback(
        self,
        metric: str,
        value: float,
        *,
        request_id: str | None = None,
        experiment: str | None = None,
        unit: str | None = None,
        key: str | None = None,
    ) -> FeedbackReply:
        """Tell how an answer was: of a request (``answer.request_id``), or of a unit of an experiment.

        ``key`` tells a repeated outcome from a second one; without it each call of this method counts.
        """
        body = {"request_id": request_id, "experiment": experiment, "unit": unit}
        return self.send(feedback(metric, value, body, key))

    def tokenize(self, text: str) -> TokenizeReply:
        return self.send(calls.tokenize(text))

    def status(self) -> Status:
        return self.send(calls.status())

    def ready(self) -> Ready:
        """Answers while the server drains, too."""
        return self.send(calls.ready())
