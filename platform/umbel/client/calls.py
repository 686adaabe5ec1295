"""Every request there is as a plain value: what to send and how to read the answer. Both clients send these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from umbel.core.errors import UsageError
from umbel.core.wire.adapters import (
    AdapterView,
    AliasEventView,
    DiffView,
    HistoryReply,
    ListReply,
    VersionSummary,
    VersionView,
)
from umbel.core.wire.base import Model, ModelList
from umbel.core.wire.chat import ChatChunk, ChatReply
from umbel.core.wire.completions import CompletionReply
from umbel.core.wire.pooled import ClassifyReply, EmbeddingsReply, ScoreReply, TagReply
from umbel.core.wire.server import Ready, Status, TokenizeReply

T = TypeVar("T")

Texts = str | Sequence[str]
Models = str | Sequence[str]
Messages = str | Sequence[Mapping[str, str]]
"""One user message may be given as its text alone."""
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. ``reads`` is the type of its answer, or of one event of its stream."""

    method: str
    path: str
    reads: Any
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    files: tuple[tuple[str, bytes], ...] = ()
    """Names and contents: then ``body`` is sent as the fields of a form beside them."""
    accepts: tuple[int, ...] = ()
    """Statuses that are an answer though they are no success."""

    def read(self, content: bytes | str) -> T:
        found: T = content if self.reads is bytes else TypeAdapter(self.reads).validate_json(content)  # type: ignore[assignment]
        return found

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than once, and is answered alike."""
        once = ("/rollback", "/decide", "/stop", "/v1/experiments")
        return self.method == "GET" or not self.path.endswith(once)


def for_unit(call: Call[T], unit: str | None) -> Call[T]:
    """Asked on behalf of one unit, which an experiment treats alike each time."""
    if unit is None:
        return call
    if not unit.strip() or any(character in unit for character in "\r\n\0"):
        raise UsageError(f"{unit!r} is no unit.", code="invalid_unit", param="unit", hint="send a user's id")
    return replace(call, headers={**call.headers, "X-Experiment-Unit": unit.strip()})


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", ModelList)


def model(name: str) -> Call[Model]:
    return Call("GET", f"/v1/models/{part(name)}", Model)


def chat(model: str, messages: Messages, options: Mapping[str, Any]) -> Call[ChatReply]:
    return Call("POST", "/v1/chat/completions", ChatReply, _chat_body(model, messages, options))


def chat_stream(model: str, messages: Messages, options: Mapping[str, Any]) -> Call[ChatChunk]:
    return Call("POST", "/v1/chat/completions", ChatChunk, {**_chat_body(model, messages, options), "stream": True})


def complete(model: str, prompt: Prompts, options: Mapping[str, Any]) -> Call[CompletionReply]:
    return Call("POST", "/v1/completions", CompletionReply, {"model": model, "prompt": prompt, **options})


def complete_stream(model: str, prompt: Prompts, options: Mapping[str, Any]) -> Call[CompletionReply]:
    body = {"model": model, "prompt": prompt, **options, "stream": True}
    return Call("POST", "/v1/completions", CompletionReply, body)


def classify(model: Models, input: Texts, abstain_below: float | None) -> Call[ClassifyReply]:
    body = given({"model": model, "input": input, "abstain_below": abstain_below})
    return Call("POST", "/v1/classify", ClassifyReply, body)


def score(model: Models, input: Texts) -> Call[ScoreReply]:
    return Call("POST", "/v1/score", ScoreReply, {"model": model, "input": input})


def tag(model: Models, input: Texts | Sequence[Sequence[str]]) -> Call[TagReply]:
    return Call("POST", "/v1/tag", TagReply, {"model": model, "input": input})


def embed(model: Models, input: Texts, dimensions: int | None) -> Call[EmbeddingsReply]:
    body = {"model": model, "input": input, **({"dimensions": dimensions} if dimensions is not None else {})}
    return Call("POST", "/v1/embeddings", EmbeddingsReply, body)


def tokenize(text: str) -> Call[TokenizeReply]:
    return Call("POST", "/tokenize", TokenizeReply, {"prompt": text})


def status() -> Call[Status]:
    return Call("GET", "/v1/status", Status)


def ready() -> Call[Ready]:
    return Call("GET", "/ready", Ready, accepts=(503,))


def list_adapters(filters: Mapping[str, Any], cursor: str | None) -> Call[ListReply[AdapterView]]:
    return Call("GET", "/v1/adapters", ListReply[AdapterView], query=given({**filters, "cursor": cursor}))


def get_adapter(name: str) -> Call[AdapterView]:
    return Call("GET", adapter_path(name), AdapterView)


def list_versions(name: str, state: str | None, cursor: str | None) -> Call[ListReply[VersionSummary]]:
    query = given({"state": state, "cursor": cursor})
    return Call("GET", f"{adapter_path(name)}/versions", ListReply[VersionSummary], query=query)


def get_version(name: str, which: str | int) -> Call[VersionView]:
    return Call("GET", f"{adapter_path(name)}/versions/{part(str(which))}", VersionView)


def diff(name: str, before: str | int, after: str | int, weights: bool) -> Call[DiffView]:
    query = {"before": before, "after": after, **({"weights": "true"} if weights else {})}
    return Call("GET", f"{adapter_path(name)}/diff", DiffView, query=query)


def aliases(name: str) -> Call[dict[str, int]]:
    return Call("GET", f"{adapter_path(name)}/aliases", dict[str, int])


def history(name: str, alias: str | None) -> Call[HistoryReply]:
    return Call("GET", f"{adapter_path(name)}/history", HistoryReply, query=given({"alias": alias}))


def set_alias(name: str, alias: str, version: int, expect: int | None, reason: str | None) -> Call[AliasEventView]:
    body = given({"version": version, "expect": expect, "reason": reason})
    return Call("PUT", f"{adapter_path(name)}/aliases/{part(alias)}", AliasEventView, body)


def promote(name: str, version: int, expect: int | None, reason: str | None) -> Call[AliasEventView]:
    body = given({"version": version, "expect": expect, "reason": reason})
    return Call("POST", f"{adapter_path(name)}/promote", AliasEventView, body)


def rollback(name: str, alias: str, reason: str | None) -> Call[AliasEventView]:
    return Call("POST", f"{adapter_path(name)}/rollback", AliasEventView, given({"alias": alias, "reason": reason}))


def yank(name: str, which: str | int, reason: str) -> Call[VersionView]:
    return Call("POST", f"{adapter_path(name)}/versions/{part(str(which))}/yank", VersionView, {"reason": reason})


def unyank(name: str, which: str | int) -> Call[VersionView]:
    return Call("POST", f"{adapter_path(name)}/versions/{part(str(which))}/unyank", VersionView)


def _chat_body(model: str, messages: Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(one) for one in messages]
    return {"model": model, "messages": turns, **options}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def adapter_path(name: str) -> str:
    return f"/v1/adapters/{part(name)}"


def part(text: str) -> str:
    return quote(text, safe="@:")
