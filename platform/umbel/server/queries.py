"""Query parameters that a route does not know: refused, since a filter that is ignored answers with what it left in.

OpenAI's routes are left alone: its SDK for Azure adds ``api-version`` to each, and a proxy may add others.
"""

from collections.abc import Sequence

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from umbel.core.errors import UsageError
from umbel.core.names import nearest

OPENAI = ("/v1/models", "/v1/models/{model:path}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def parameters(route: APIRoute) -> list[str]:
    """The names that the signatures of the route and of its dependencies take, those of the route last."""
    return _taken(route.dependant)


def _taken(dependant: Dependant) -> list[str]:
    below = [name for one in dependant.dependencies for name in _taken(one)]
    return [*below, *(one.alias for one in dependant.query_params)]


def check_query(request: Request) -> None:
    """Raises UsageError (``unknown_parameter``) for a name that the route would pass over."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute) or route.path in OPENAI:
        return
    known = parameters(route)
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"there is no query parameter {unknown!r} of {request.method} {route.path}.",
            code="unknown_parameter",
            param=unknown,
            hint=_instead(unknown, known),
        )


def _instead(name: str, known: Sequence[str]) -> str:
    if not known:
        return "leave it out: the route takes none"
    near = nearest(name, known) or next((one for one in known if name in one.split("_")), None)
    return f"{f'did you mean {near}? ' if near else ''}there are {', '.join(known)}"
