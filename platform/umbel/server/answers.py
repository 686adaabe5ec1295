"""Replies with the headers that every answer carries."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def reply(body: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")
