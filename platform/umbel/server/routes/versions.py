"""A version comes in as an upload and goes out file by file."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from umbel.core.digests import digest_bytes
from umbel.core.errors import Interrupted, NotFound, UsageError
from umbel.core.manifest import CARD_FILE
from umbel.core.names import check_name
from umbel.core.wire.adapters import FileView, ListReply, UploadFields, VersionView
from umbel.registry.records import Scope, Version
from umbel.server.answers import reply
from umbel.server.errors import from_validation
from umbel.server.routes.adapters import reference
from umbel.server.security import Publisher, needs
from umbel.server.service import Service, ServiceDep, shutting_down
from umbel.server.uploads import receive

router = APIRouter(prefix="/v1/adapters/{name}/versions", dependencies=[needs(Scope.READ)], tags=["registry"])
writes = APIRouter(prefix="/v1/adapters/{name}/versions", dependencies=[needs(Scope.PUBLISH)], tags=["registry"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **UploadFields.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}
"""For /openapi.json: the route reads its form itself, since FastAPI would read it before it looks at the key."""


@writes.post("", response_model=VersionView, status_code=201, openapi_extra=_FORM)
async def publish(name: str, request: Request, service: ServiceDep, actor: Publisher) -> Response:
    """Publish a folder that PEFT or umbel wrote, sent as ``files``: 201, or 200 where the same bytes were there."""
    check_name(name)
    if service.draining:
        raise shutting_down()
    with service.importer.folder() as folder:
        upload = await receive(request.headers.get("content-type", ""), _body(request), folder)
        version, new = await service.importer.publish(name, folder, fields_of(upload.fields), actor)
    where = {"location": f"/v1/adapters/{version.name}/versions/{version.number}"}
    return reply(VersionView.model_validate(version), where, status=201 if new else 200)


@router.get("/{which}/files")
async def files(name: str, which: str, service: ServiceDep) -> ListReply[FileView]:
    """The files of a PEFT folder, with the card as README.md."""
    return ListReply(data=listed(await _find(service, name, which)))


@router.get("/{which}/files/{path:path}", response_class=FileResponse)
async def file(name: str, which: str, path: str, request: Request, service: ServiceDep) -> Response:
    """One of them, as it was published; its ETag is its digest."""
    version = await _find(service, name, which)
    found = next((one for one in listed(version) if one.path == path), None)
    if found is None:
        raise NotFound(
            f"{version.ref} has no file {path!r}.",
            code="file_not_found",
            param="path",
            hint=f"/v1/adapters/{version.name}/versions/{version.number}/files lists them",
        )
    headers = {
        "etag": f'"{found.digest}"',
        "x-umbel-adapter": str(version.ref),
        "x-umbel-digest": version.digest,
        "x-content-type-options": "nosniff",
        "content-disposition": f'attachment; filename="{path.rsplit("/", 1)[-1]}"',
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if path == CARD_FILE and version.card is not None:
        return Response(version.card, headers=headers, media_type="text/markdown")
    stored = await to_thread.run_sync(service.registry.fetch, version.digest)
    return FileResponse(stored.folder / path, headers=headers)


def listed(version: Version) -> list[FileView]:
    """The manifest's files, and the card, which is not one of them."""
    found = [FileView.model_validate(one) for one in version.files]
    if version.card is not None:
        card = version.card.encode()
        found.append(FileView(path=CARD_FILE, digest=digest_bytes(card), bytes=len(card)))
    return found


def fields_of(sent: Mapping[str, Sequence[str]]) -> UploadFields:
    """``labels`` may be one list with commas, or be sent once for each; everything else is sent once."""
    values: dict[str, Any] = {}
    for key, said in sent.items():
        if key == "labels":
            parts = said if len(said) > 1 else said[0].split(",")
            values[key] = tuple(part.strip() for part in parts if part.strip())
        elif len(said) > 1:
            raise UsageError(f"{key} was sent {len(said)} times.", code="invalid_form", param=key, hint="send it once")
        else:
            values[key] = said[0]
    try:
        return UploadFields.model_validate(values)
    except ValidationError as error:
        located = [{**one, "loc": ("form", *one["loc"])} for one in error.errors()]
        raise from_validation(located, list(UploadFields.model_fields), "json") from None


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise Interrupted("the client went away.") from None


async def _find(service: Service, name: str, which: str) -> Version:
    return await to_thread.run_sync(service.registry.versions.get, reference(name, which))
