"""The app: routes, the layers around them, and the one place where errors become replies.

A request passes Trace (id, log, metrics), HostGuard, BodyLimits, then its route's scope, then the route.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from umbel.core.errors import UmbelError
from umbel.server.errors import error_reply, from_status, from_validation
from umbel.server.hosts import LOOPBACK, HostGuard, is_loopback
from umbel.server.limits import BodyLimits
from umbel.server.routes import (
    adapters,
    aliases,
    chat,
    classify,
    completions,
    embeddings,
    experiments,
    feedback,
    health,
    models,
    residency,
    score,
    tag,
    tags,
    tokenize,
    versions,
)
from umbel.server.security import require_scopes
from umbel.server.service import ServerConfig, Service
from umbel.server.trace import Trace

ROUTERS = (
    models.router,
    chat.router,
    completions.router,
    classify.router,
    score.router,
    tag.router,
    embeddings.router,
    aliases.router,
    aliases.writes,
    adapters.router,
    adapters.writes,
    residency.router,
    tags.router,
    versions.router,
    versions.writes,
    experiments.router,
    experiments.writes,
    feedback.router,
    tokenize.router,
    health.public,
    health.router,
)


def create_app(service: Service) -> FastAPI:
    """An app over parts that are running already; whoever made them closes them."""
    app = FastAPI(
        title="umbel",
        version=version("umbel"),
        description="One frozen backbone, many task adapters. `model` names the one that answers.",
        docs_url=None,  # its page runs scripts of another host
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the caller's Host
        lifespan=_lifespan,
    )
    app.state.service = service
    for router in ROUTERS:
        app.router.routes.extend(router.routes)  # not include_router: it hides the routes from `require_scopes`
    _handle_errors(app)
    _add_layers(app, service)
    require_scopes(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.service.guardrails.flush()
    app.state.service.texts.close()


def _add_layers(app: FastAPI, service: Service) -> None:
    """The one added last is outermost."""
    config = service.config
    app.add_middleware(BodyLimits, body=config.body_limit, upload=config.upload_limit)
    app.add_middleware(HostGuard, allowed=_hosts(config))
    app.add_middleware(Trace, service=service)


def _hosts(config: ServerConfig) -> tuple[str, ...] | None:
    """On loopback a list; beyond it keys stand guard, unless a list was asked for."""
    if is_loopback(config.host):
        return (*LOOPBACK, config.host, *config.allowed_hosts)
    return (*LOOPBACK, *config.allowed_hosts) if config.allowed_hosts else None


def _handle_errors(app: FastAPI) -> None:
    async def umbel(request: Request, error: Any) -> Response:
        assert isinstance(error, UmbelError)
        return error_reply(error)

    async def invalid(request: Request, error: Any) -> Response:
        assert isinstance(error, RequestValidationError)
        content_type = request.headers.get("content-type", "")
        return error_reply(from_validation(error.errors(), _fields(request), content_type))

    async def status(request: Request, error: Any) -> Response:
        assert isinstance(error, HTTPException)
        allowed = (error.headers or {}).get("Allow", "")
        known = [one.path for one in app.routes if isinstance(one, Route)]
        path = request.url.path
        return error_reply(from_status(error.status_code, request.method, path, allowed=allowed, known=known))

    app.add_exception_handler(UmbelError, umbel)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, status)


def _fields(request: Request) -> list[str]:
    """The fields that the route's body knows, for "did you mean"."""
    route = request.scope.get("route")
    body = route.body_field if isinstance(route, APIRoute) else None
    model = getattr(getattr(body, "field_info", None), "annotation", None)
    return list(getattr(model, "model_fields", {}))
