"""``client.adapters``: the registry of a server."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from umbel.client import calls, curating
from umbel.client.calls import Call
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
from umbel.core.wire.residency import Residency

T = TypeVar("T")


class Adapters:
    """``send`` is the client's own."""

    def __init__(self, send: Callable[[Call[Any]], Any]) -> None:
        self._send = send

    def list(
        self, *, search: str | None = None, metric: Sequence[str] = (), tag: Sequence[str] = (), **filters: Any
    ) -> Iterator[AdapterView]:
        """All that match, page by page as you go: ``method``, ``output_head``, ``state``, ``alias``, ``sort`` ...

        ``metric`` holds bounds such as ``accuracy>=0.8``, ``tag`` pairs such as ``team=search``.
        """
        wanted = {"search": search, "metric": list(metric), "tag": list(tag), **filters}
        return self._pages(lambda cursor: calls.list_adapters(wanted, cursor))

    def get(self, name: str) -> AdapterView:
        return self._sent(calls.get_adapter(name))

    def versions(self, name: str, *, state: str | None = None) -> Iterator[VersionSummary]:
        """Newest first."""
        return self._pages(lambda cursor: calls.list_versions(name, state, cursor))

    def version(self, name: str, which: str | int = CHAMPION) -> VersionView:
        """``which`` is a number, an alias or a digest."""
        return self._sent(calls.get_version(name, which))

    def diff(self, name: str, before: str | int, after: str | int = CHAMPION, *, weights: bool = False) -> DiffView:
        return self._sent(calls.diff(name, before, after, weights))

    def aliases(self, name: str) -> dict[str, int]:
        return self._sent(calls.aliases(name))

    def history(self, name: str, alias: str | None = None) -> Sequence[AliasEventView]:
        return self._sent(calls.history(name, alias)).data

    def set_alias(
        self, name: str, alias: str, version: int, *, expect: int | None = None, reason: str | None = None
    ) -> AliasEventView:
        """``expect``: the number it should have now (0: none); Conflict if somebody moved it."""
        return self._sent(calls.set_alias(name, alias, version, expect, reason))

    def promote(
        self, name: str, version: int, *, expect: int | None = None, reason: str | None = None
    ) -> AliasEventView:
        return self._sent(calls.promote(name, version, expect, reason))

    def rollback(self, name: str, alias: str = CHAMPION, *, reason: str | None = None) -> AliasEventView:
        return self._sent(calls.rollback(name, alias, reason))

    def yank(self, name: str, which: str | int, *, reason: str) -> VersionView:
        return self._sent(calls.yank(name, which, reason))

    def unyank(self, name: str, which: str | int) -> VersionView:
        return self._sent(calls.unyank(name, which))

    def upload(
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
        """Publishes a folder that PEFT or umbel wrote; the same bytes again are the same version.

        ``labels``, ``template`` and ``max_length`` say what a folder of PEFT's cannot.
        """
        call = curating.upload(name, folder, labels, template, max_length, description, allow_noop, backbone)
        return self._sent(call)

    def files(self, name: str, which: str | int = CHAMPION) -> Sequence[FileView]:
        return (self._sent(curating.files(name, which))).data

    def download(self, name: str, path: str, which: str | int = CHAMPION) -> bytes:
        return self._sent(curating.download(name, which, path))

    def export(self, name: str, folder: str | Path, which: str | int = CHAMPION) -> Path:
        """Writes a version into a new or empty folder that PEFT reads, each file checked against its digest."""
        target, version = curating.check_folder(folder), self.version(name, which)
        digest = version.digest
        contents = {
            one.path: curating.checked(one, self.download(name, one.path, digest)) for one in self.files(name, digest)
        }
        return curating.keep(target, contents, version)

    def set_tag(self, name: str, key: str, value: str) -> dict[str, str]:
        """All tags, this one added or replaced."""
        return self._sent(curating.set_tag(name, key, value))

    def remove_tag(self, name: str, key: str) -> dict[str, str]:
        return self._sent(curating.remove_tag(name, key))

    def warm(self, name: str, which: str | int = CHAMPION, *, timeout: float = 60.0) -> Residency:
        """Has it loaded before the first request; waits until it is."""
        return self._sent(curating.warm(name, which, timeout))

    def unload(self, name: str, which: str | int = CHAMPION) -> Residency:
        """Has its memory freed. Raises Conflict while requests wear it, after asking a few times."""
        return self._sent(curating.unload(name, which))

    def _sent(self, call: Call[T]) -> T:
        found: T = self._send(call)
        return found

    def _pages(self, page: Callable[[str | None], Call[ListReply[T]]]) -> Iterator[T]:
        cursor: str | None = None
        while True:
            found = self._sent(page(cursor))
            yield from found.data
            cursor = found.next
            if cursor is None:
                return
