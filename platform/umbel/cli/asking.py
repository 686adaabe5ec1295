"""Rows in, answers out: what ``umbel run`` asks a model, in this process or of a server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from umbel.client import AsyncClient
from umbel.core.contract import OutputHead
from umbel.core.errors import DataError, UmbelError
from umbel.core.ways import in_the_shell

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.core.settings import Settings

LOCAL = "http://localhost"


@asynccontextmanager
async def local_client(settings: "Settings", backbone: "Backbone") -> AsyncIterator[AsyncClient]:
    """A client of a server that lives in this process and listens nowhere."""
    import httpx2

    from umbel.registry import Registry
    from umbel.server.app import create_app
    from umbel.server.assembly import running
    from umbel.server.service import Capacity, ServerConfig

    capacity = Capacity(max_rows=32, kv_bytes=1_000_000_000, adapter_bytes=1_000_000_000)
    with Registry.open(settings) as registry, running(backbone, registry, capacity, ServerConfig()) as parts:
        transport = httpx2.ASGITransport(app=create_app(parts.service))
        async with AsyncClient(LOCAL, transport=transport) as client:
            yield client
        parts.service.texts.close()


async def ask(
    client: AsyncClient, model: str, head: OutputHead, row: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """One row's answer as plain JSON. Raises what the server says, DataError for a row that the head cannot read."""
    if head is OutputHead.GENERATE:
        reply = await client.chat(model, row["messages"] if "messages" in row else text_of(row), **options)
        return {"output": reply.text, "finish_reason": reply.choices[0].finish_reason, "model": reply.model}
    if head is OutputHead.CLASSIFY:
        return _first(await client.classify(model, text_of(row), abstain_below=options.get("abstain_below")))
    if head is OutputHead.TAG:
        tagged = await client.tag(model, [row["tokens"]] if "tokens" in row else text_of(row))
        return _first(tagged)
    if head is OutputHead.REGRESS:
        return _first(await client.score(model, text_of(row)))
    return _first(await client.embed(model, text_of(row)))


def _first(reply: Any) -> dict[str, Any]:
    found: dict[str, Any] = reply.data[0].model_dump(mode="json", exclude={"index", "object"})
    return {**found, "model": reply.model}


def text_of(row: Mapping[str, Any]) -> str:
    for key in ("text", "prompt"):
        if isinstance(row.get(key), str):
            return str(row[key])
    raise DataError(
        f"a row has no text, only {', '.join(row) or 'nothing'}.",
        code="invalid_row",
        hint='write {"text": ...}, {"prompt": ...}, {"messages": [...]} or, for taggers, {"tokens": [...]}',
    )


def failed(error: UmbelError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": in_the_shell(str(error))}}
