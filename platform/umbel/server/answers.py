"""Replies with the headers that every answer carries."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from starlette.responses import Response

from umbel.server.target import Target


def reply(body: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


def target_headers(targets: Sequence[Target]) -> dict[str, str]:
    """Of several models, both headers list them in the request's order; at most one of them is an experiment."""
    enrolled = [target.enrolment.headers for target in targets if target.enrolment]
    return {
        "X-Umbel-Adapter": ", ".join(target.shown for target in targets),
        "X-Umbel-Digest": ", ".join(target.digest for target in targets),
        **(enrolled[0] if enrolled else {}),
    }
