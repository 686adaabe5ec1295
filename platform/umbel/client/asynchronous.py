"""The same client for asyncio: the same calls, awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from umbel.client import calls, curating
from umbel.client.calls import Call, Messages, Models, Prompts, Texts
from umbel.client.experiments import AsyncExperiments, feedback
from umbel.client.wire import answer_of, error_of, event_of, is_answer, lost, request_of, settings, wait_before_retry
from umbel.core.errors import UmbelError
from umbel.core.names import CHAMPION
from umbel.core.wire.adapters import (
    AdapterView,
    AliasEventView,
    DiffView,
    FileView,
    ListReply,
    VersionSummary,
    VersionView,
)
from umbel.core.wire.base import Model, ModelList
from umbel.core.wire.chat import ChatChunk, ChatReply
from umbel.core.wire.completions import CompletionReply
from umbel.core.wire.experiments import FeedbackReply
from umbel.core.wire.pooled import ClassifyReply, EmbeddingsReply, ScoreReply, TagReply
from umbel.core.wire.residency import Residency
from umbel.core.wire.server import Ready, Status, TokenizeReply

T = TypeVar("T")


class AsyncClient:
    """See ``Client``."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx2.AsyncClient(**settings(base_url, api_key, timeout), transport=transport)
        self.adapters = AsyncAdapters(self)
        self.experiments = AsyncExperiments(self.send)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def url(self) -> str:
        """Of the server, wherever it was said."""
        return str(self._http.base_url)

    async def send(self, call: Call[T]) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(call)
            except UmbelError as error:
                wait = wait_before_retry(call, error, tries)
                if wait is None:
                    raise
                await asyncio.sleep(wait)

    async def _once(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(**request_of(call))
        except httpx2.TransportError as error:
            raise lost(error, str(self._http.base_url)) from error
        if not is_answer(call, response):
            raise error_of(response)
        return answer_of(call, response.content, response.headers)

    async def stream(self, call: Call[T]) -> AsyncIterator[T]:
        try:
            async with self._http.stream(**request_of(call)) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                async for line in response.aiter_lines():
                    event = event_of(call, line, response.headers)
                    if event is not None:
                        yield event
        except httpx2.TransportError as error:
            raise lost(error, str(self._http.base_url)) from error

    async def models(self) -> ModelList:
        return await self.send(calls.models())

    async def model(self, name: str) -> Model:
        return await self.send(calls.model(name))

    async def chat(self, model: str, messages: Messages, unit: str | None = None, **options: Any) -> ChatReply:
        return await self.send(calls.for_unit(calls.chat(model, messages, options), unit))

    def chat_stream(
        self, model: str, messages: Messages, unit: str | None = None, **options: Any
    ) -> AsyncIterator[ChatChunk]:
        return self.stream(calls.for_unit(calls.chat_stream(model, messages, options), unit))

    async def complete(self, model: str, prompt: Prompts, unit: str | None = None, **options: Any) -> CompletionReply:
        return await self.send(calls.for_unit(calls.complete(model, prompt, options), unit))

    def complete_stream(
        self, model: str, prompt: Prompts, unit: str | None = None, **options: Any
    ) -> AsyncIterator[CompletionReply]:
        return self.stream(calls.for_unit(calls.complete_stream(model, prompt, options), unit))

    async def classify(
        self, model: Models, input: Texts, *, abstain_below: float | None = None, unit: str | None = None
    ) -> ClassifyReply:
        return await self.send(calls.for_unit(calls.classify(model, input, abstain_below), unit))

    async def score(self, model: Models, input: Texts, *, unit: str | None = None) -> ScoreReply:
        return await self.send(calls.for_unit(calls.score(model, input), unit))

    async def tag(self, model: Models, input: Texts | Sequence[Sequence[str]], *, unit: str | None = None) -> TagReply:
        return await self.send(calls.for_unit(calls.tag(model, input), unit))

    async def embed(
        self, model: Models, input: Texts, *, dimensions: int | None = None, unit: str | None = None
    ) -> EmbeddingsReply:
        return await self.send(calls.for_unit(calls.embed(model, input, dimensions), unit))

    async def feedback(
        self,
        metric: str,
        value: float,
        *,
        request_id: str | None = None,
        experiment: str | None = None,
        unit: str | None = None,
        key: str | None = None,
    ) -> FeedbackReply:
        body = {"request_id": request_id, "experiment": experiment, "unit": unit}
        return await self.send(feedback(metric, value, body, key))

    async def tokenize(self, text: str) -> TokenizeReply:
        return await self.send(calls.tokenize(text))

    async def status(self) -> Status:
        return await self.send(calls.status())

    async def ready(self) -> Ready:
        return await self.send(calls.ready())


class AsyncAdapters:
    """See ``Adapters``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def list(
        self, *, search: str | None = None, metric: Sequence[str] = (), tag: Sequence[str] = (), **filters: Any
    ) -> AsyncIterator[AdapterView]:
        wanted = {"search": search, "metric": list(metric), "tag": list(tag), **filters}
        return self._pages(lambda cursor: calls.list_adapters(wanted, cursor))

    async def get(self, name: str) -> AdapterView:
        return await self._client.send(calls.get_adapter(name))

    def versions(self, name: str, *, state: str | None = None) -> AsyncIterator[VersionSummary]:
        return self._pages(lambda cursor: calls.list_versions(name, state, cursor))

    async def version(self, name: str, which: str | int = CHAMPION) -> VersionView:
        return await self._client.send(calls.get_version(name, which))

    async def diff(
        self, name: str, before: str | int, after: str | int = CHAMPION, *, weights: bool = False
    ) -> DiffView:
        return await self._client.send(calls.diff(name, before, after, weights))

    async def aliases(self, name: str) -> dict[str, int]:
        return await self._client.send(calls.aliases(name))

    async def history(self, name: str, alias: str | None = None) -> Sequence[AliasEventView]:
        return (await self._client.send(calls.history(name, alias))).data

    async def set_alias(
        self, name: str, alias: str, version: int, *, expect: int | None = None, reason: str | None = None
    ) -> AliasEventView:
        return await self._client.send(calls.set_alias(name, alias, version, expect, reason))

    async def promote(
        self, name: str, version: int, *, expect: int | None = None, reason: str | None = None
    ) -> AliasEventView:
        return await self._client.send(calls.promote(name, version, expect, reason))

    async def rollback(self, name: str, alias: str = CHAMPION, *, reason: str | None = None) -> AliasEventView:
        return await self._client.send(calls.rollback(name, alias, reason))

    async def yank(self, name: str, which: str | int, *, reason: str) -> VersionView:
        return await self._client.send(calls.yank(name, which, reason))

    async def unyank(self, name: str, which: str | int) -> VersionView:
        return await self._client.send(calls.unyank(name, which))

    async def upload(
        self,
        name: str,
        folder: str | Path,
        *,
        labels: Sequence[str] = (),
        template: str | None = None,
        max_length: int | None = None,
        description: str | None = None,
        allow_noop: bool = False,
        backbone: str | None = None,
    ) -> VersionView:
        call = curating.upload(name, folder, labels, template, max_length, description, allow_noop, backbone)
        return await self._client.send(call)

    async def files(self, name: str, which: str | int = CHAMPION) -> Sequence[FileView]:
        return (await self._client.send(curating.files(name, which))).data

    async def download(self, name: str, path: str, which: str | int = CHAMPION) -> bytes:
        return await self._client.send(curating.download(name, which, path))

    async def export(self, name: str, folder: str | Path, which: str | int = CHAMPION) -> Path:
        target, version = curating.check_folder(folder), await self.version(name, which)
        digest = version.digest
        contents = {
            one.path: curating.checked(one, await self.download(name, one.path, digest))
            for one in await self.files(name, digest)
        }
        return curating.keep(target, contents, version)

    async def set_tag(self, name: str, key: str, value: str) -> dict[str, str]:
        return await self._client.send(curating.set_tag(name, key, value))

    async def remove_tag(self, name: str, key: str) -> dict[str, str]:
        return await self._client.send(curating.remove_tag(name, key))

    async def warm(self, name: str, which: str | int = CHAMPION, *, timeout: float = 60.0) -> Residency:
        return await self._client.send(curating.warm(name, which, timeout))

    async def unload(self, name: str, which: str | int = CHAMPION) -> Residency:
        return await self._client.send(curating.unload(name, which))

    async def _pages(self, page: Callable[[str | None], Call[ListReply[T]]]) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            found = await self._client.send(page(cursor))
            for item in found.data:
                yield item
            cursor = found.next
            if cursor is None:
                return
