"""The client for ordinary code."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from umbel.client import calls
from umbel.client.adapters import Adapters
from umbel.client.calls import Call, Messages, Models, Prompts, Texts
from umbel.client.wire import error_of, event_of, is_answer, lost, request_of, settings, wait_before_retry
from umbel.core.errors import UmbelError
from umbel.core.wire.base import Model, ModelList
from umbel.core.wire.chat import ChatChunk, ChatReply
from umbel.core.wire.completions import CompletionReply
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

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
        return call.read(response.content)

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

    def chat(self, model: str, messages: Messages, **options: Any) -> ChatReply:
        """``options`` are OpenAI's fields: ``max_tokens``, ``temperature``, ``seed``, ``logprobs`` ..."""
        return self.send(calls.chat(model, messages, options))

    def chat_stream(self, model: str, messages: Messages, **options: Any) -> Iterator[ChatChunk]:
        return self.stream(calls.chat_stream(model, messages, options))

    def complete(self, model: str, prompt: Prompts, **options: Any) -> CompletionReply:
        return self.send(calls.complete(model, prompt, options))

    def complete_stream(self, model: str, prompt: Prompts, **options: Any) -> Iterator[CompletionReply]:
        return self.stream(calls.complete_stream(model, prompt, options))

    def classify(self, model: Models, input: Texts) -> ClassifyReply:
        """``data`` for one model; for a list of them ``results``, keyed by model."""
        return self.send(calls.classify(model, input))

    def score(self, model: Models, input: Texts) -> ScoreReply:
        return self.send(calls.score(model, input))

    def tag(self, model: Models, input: Texts | Sequence[Sequence[str]]) -> TagReply:
        return self.send(calls.tag(model, input))

    def embed(self, model: Models, input: Texts, *, dimensions: int | None = None) -> EmbeddingsReply:
        return self.send(calls.embed(model, input, dimensions))

    def tokenize(self, text: str) -> TokenizeReply:
        return self.send(calls.tokenize(text))

    def status(self) -> Status:
        return self.send(calls.status())

    def ready(self) -> Ready:
        """Answers while the server drains, too."""
        return self.send(calls.ready())
