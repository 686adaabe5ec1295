"""Receives an adapter's folder as multipart/form-data, from the socket to the disk, checking each name as it comes.

Nothing is kept in memory but the form's short fields. A part whose name is not on the list ends the upload before its
bytes are read.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from umbel.core.errors import AdapterRefused, UsageError
from umbel.core.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    UMBEL_FILE,
    UPLOADED_FILES,
    WEIGHTS_FILE,
    check_path,
)
from umbel.registry.draft import check_kind
from umbel.registry.store import disk
from umbel.server.errors import TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILES_FIELD = "files"
TEXT_BYTES = 1_000_000
"""Most bytes of a file that is read whole as text."""
FIELD_BYTES = 64_000
MAX_PARTS = 64
"""Files and fields together."""
TEXTS = (CONFIG_FILE, UMBEL_FILE, CARD_FILE, METRICS_FILE)
"""The other files may be as large as the whole upload."""


@dataclass(slots=True)
class Upload:
    """What arrived: files in ``folder``, and the values of each field in the order they were sent."""

    folder: Path
    files: list[str] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)


async def receive(content_type: str, chunks: AsyncIterator[bytes], folder: Path) -> Upload:
    """Reads a whole form. ``chunks`` bounds its size and time; parsing and writing happen on a worker thread.

    Raises AdapterRefused for a file that no adapter has, UsageError for what is no form, TooLarge.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UsageError(
            "the body is no multipart form.",
            code="invalid_form",
            hint=f"curl -F {FILES_FIELD}=@{CONFIG_FILE} -F {FILES_FIELD}=@{WEIGHTS_FILE} ...",
        )
    form = _Form(options[b"boundary"], Upload(folder))
    try:
        async for chunk in chunks:
            await to_thread.run_sync(form.feed, chunk)
        await to_thread.run_sync(form.finish)
    finally:
        form.close()
    return form.upload


class _Form:
    """One form as it comes; the parser calls back for each piece."""

    def __init__(self, boundary: bytes, upload: Upload) -> None:
        self.upload = upload
        self._headers: dict[str, str] = {}
        self._header = [b"", b""]
        self._part: _File | _Field | None = None
        self._parts = 0
        self._ended = False
        self._parser = _parser(boundary, self._callbacks())

    def feed(self, chunk: bytes) -> None:
        try:
            with disk(self.upload.folder):
                self._parser.write(chunk)
        except FormParserError:
            raise _broken() from None

    def finish(self) -> None:
        self._parser.finalize()
        if not self._ended:
            raise _broken()

    def close(self) -> None:
        if isinstance(self._part, _File):
            self._part.file.close()

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._on_data(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise UsageError(f"the form has more than {MAX_PARTS} parts.", code="invalid_form")
        self._headers = {}

    def _on_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _end_header(self) -> None:
        name, value = (part.decode("latin-1") for part in self._header)  # bytes as they are: names are UTF-8
        self._headers[name.lower()] = value
        self._header = [b"", b""]

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            self._part = self._file(name, options[b"filename"].decode("utf-8", "replace"))
        elif name and name != FILES_FIELD:
            self._part = _Field(name)
        else:
            raise UsageError(
                f"a part of the form has no {'file name' if name else 'name'}.",
                code="invalid_form",
                hint=f"send each file as -F {FILES_FIELD}=@PATH",
            )

    def _file(self, field: str, name: str) -> "_File":
        if field != FILES_FIELD:
            raise UsageError(
                f"the file {name!r} was sent as {field!r}.",
                code="unknown_field",
                param=field,
                hint=f"send files as {FILES_FIELD}",
            )
        check_path(name)
        if name not in UPLOADED_FILES:
            check_kind(name)
            raise AdapterRefused(
                f"{name} is not a file that an adapter has.",
                code="unexpected_file",
                hint=f"leave it out; an adapter has {', '.join(UPLOADED_FILES)}",
            )
        if name in self.upload.files:
            raise AdapterRefused(f"{name} was sent twice.", code="duplicate_file", hint="send each file once")
        self.upload.files.append(name)
        return _File(name, (self.upload.folder / name).open("xb"))

    def _on_data(self, data: bytes) -> None:
        assert self._part is not None
        self._part.add(data)

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if isinstance(part, _File):
            part.file.close()
        elif part is not None:
            self.upload.fields.setdefault(part.name, []).append(part.text())

    def _on_end(self) -> None:
        self._ended = True


@dataclass(slots=True)
class _File:
    name: str
    file: BinaryIO
    size: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self.name in TEXTS and self.size > TEXT_BYTES:
            raise TooLarge(f"{self.name} is larger than {TEXT_BYTES} bytes.", hint="it is text; shorten it")
        self.file.write(data)


@dataclass(slots=True)
class _Field:
    name: str
    data: bytes = b""

    def add(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > FIELD_BYTES:
            raise TooLarge(f"the field {self.name!r} is larger than {FIELD_BYTES} bytes.", param=self.name)

    def text(self) -> str:
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{self.name} is not UTF-8.", code="invalid_value", param=self.name) from None


def _parser(boundary: bytes, callbacks: "MultipartCallbacks") -> MultipartParser:
    try:
        return MultipartParser(boundary, callbacks)
    except FormParserError:
        raise _broken() from None


def _broken() -> UsageError:
    return UsageError(
        "the form ends in the middle, or is none.", code="invalid_form", hint="let a library or curl -F write it"
    )
