"""``client.experiments`` and ``client.feedback``: versions that share a name's traffic, and what came of it."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from umbel.client.calls import Call, given, part
from umbel.core.wire.adapters import ListReply
from umbel.core.wire.experiments import (
    DecideRequest,
    DecisionView,
    ExperimentReport,
    ExperimentSpec,
    ExperimentView,
    FeedbackReply,
)

T = TypeVar("T")

_ROOT = "/v1/experiments"


def feedback(metric: str, value: float, whose: Mapping[str, str | None], key: str | None) -> Call[FeedbackReply]:
    """One key for the call, so that the client's own retries count once."""
    own = key or f"client-{secrets.token_hex(16)}"
    body = {**given(whose), "metric": metric, "value": value, "idempotency_key": own}
    return Call("POST", "/v1/feedback", FeedbackReply, body)


def _create(spec: ExperimentSpec) -> Call[ExperimentView]:
    return Call("POST", _ROOT, ExperimentView, spec.model_dump(exclude_none=True))


def _list(status: str | None, cursor: str | None) -> Call[ListReply[ExperimentView]]:
    return Call("GET", _ROOT, ListReply[ExperimentView], query=given({"status": status, "cursor": cursor}))


def _report(name: str) -> Call[ExperimentReport]:
    return Call("GET", f"{_ROOT}/{part(name)}", ExperimentReport)


def _ramp(name: str, share: float) -> Call[ExperimentView]:
    return Call("POST", f"{_ROOT}/{part(name)}/ramp", ExperimentView, {"share": share})


def _stop(name: str, reason: str | None) -> Call[ExperimentView]:
    return Call("POST", f"{_ROOT}/{part(name)}/stop", ExperimentView, given({"reason": reason}))


def _decide(name: str, how: DecideRequest) -> Call[DecisionView]:
    return Call("POST", f"{_ROOT}/{part(name)}/decide", DecisionView, how.model_dump(exclude_none=True))


class Experiments:
    """``send`` is the client's own. Asking needs the scope read, changing promote, ``force`` admin."""

    def __init__(self, send: Callable[[Call[Any]], Any]) -> None:
        self._send = send

    def create(self, spec: ExperimentSpec) -> ExperimentView:
        """Arms are pinned to the versions that they name now; the name may then stand as ``model``."""
        return self._sent(_create(spec))

    def list(self, status: str | None = None) -> Iterator[ExperimentView]:
        """Newest first, page by page as you go."""
        cursor: str | None = None
        while True:
            page = self._sent(_list(status, cursor))
            yield from page.data
            cursor = page.next
            if cursor is None:
                return

    def report(self, name: str) -> ExperimentReport:
        """Counts and differences as of now; may be looked at as often as one likes."""
        return self._sent(_report(name))

    def ramp(self, name: str, share: float) -> ExperimentView:
        return self._sent(_ramp(name, share))

    def stop(self, name: str, reason: str | None = None) -> ExperimentView:
        return self._sent(_stop(name, reason))

    def decide(self, name: str, how: DecideRequest | None = None) -> DecisionView:
        """Raises GateFailed where the report does not carry a decision."""
        return self._sent(_decide(name, how or DecideRequest()))

    def _sent(self, call: Call[T]) -> T:
        found: T = self._send(call)
        return found


class AsyncExperiments:
    """See ``Experiments``."""

    def __init__(self, send: Callable[[Call[Any]], Awaitable[Any]]) -> None:
        self._send = send

    async def create(self, spec: ExperimentSpec) -> ExperimentView:
        return await self._sent(_create(spec))

    async def list(self, status: str | None = None) -> AsyncIterator[ExperimentView]:
        cursor: str | None = None
        while True:
            page = await self._sent(_list(status, cursor))
            for one in page.data:
                yield one
            cursor = page.next
            if cursor is None:
                return

    async def report(self, name: str) -> ExperimentReport:
        return await self._sent(_report(name))

    async def ramp(self, name: str, share: float) -> ExperimentView:
        return await self._sent(_ramp(name, share))

    async def stop(self, name: str, reason: str | None = None) -> ExperimentView:
        return await self._sent(_stop(name, reason))

    async def decide(self, name: str, how: DecideRequest | None = None) -> DecisionView:
        return await self._sent(_decide(name, how or DecideRequest()))

    async def _sent(self, call: Call[T]) -> T:
        found: T = await self._send(call)
        return found
