"""Tags over HTTP: words to find adapters by."""

from anyio import to_thread
from fastapi import APIRouter

from umbel.core.errors import UsageError
from umbel.core.wire.adapters import TagSet
from umbel.registry.records import Scope
from umbel.server.security import Publisher, needs
from umbel.server.service import ServiceDep

router = APIRouter(prefix="/v1/adapters/{name}/tags", dependencies=[needs(Scope.PUBLISH)], tags=["registry"])


@router.put("/{key}")
async def put(name: str, key: str, body: TagSet, service: ServiceDep, actor: Publisher) -> dict[str, str]:
    """Add or replace one tag; answers with all of them."""
    if not (key + body.value).isprintable():
        raise UsageError("a tag is one line of text.", code="invalid_tag", param="key", hint="leave out line breaks")
    tags = service.registry.tags
    return dict(await to_thread.run_sync(lambda: tags.set(name, {key: body.value}, actor=actor)))


@router.delete("/{key}")
async def remove(name: str, key: str, service: ServiceDep, actor: Publisher) -> dict[str, str]:
    """Take one tag away; one that is not there is no error. Answers with what is left."""
    tags = service.registry.tags
    return dict(await to_thread.run_sync(lambda: tags.remove(name, [key], actor=actor)))
