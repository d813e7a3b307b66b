"""Puts the API onto an application: routers, error handlers and the ASGI layers, in their order."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.api import (
    adapters,
    admin,
    advice,
    anthropic,
    bundles,
    care,
    datasets,
    desired,
    exports,
    importance,
    jobs,
    laboratory,
    llama_server,
    llama_server_lora,
    llama_server_rerank,
    llama_server_state,
    llama_server_words,
    models,
    native,
    ollama,
    ollama_create,
    ollama_models,
    ollama_pulls,
    openai,
    openai_embeddings,
    openai_responses,
    remote,
    uploads,
    variants,
    workers,
)
from service.api.access import Access
from service.api.documents import document, operation_id
from service.api.gate import Gate
from service.api.jobs import accepted
from service.api.limits import BodyLimits
from service.api.on_demand import LevelInTheMaking
from service.api.responses import dialect_of, error_from_validation, error_response
from service.api.services import Services
from service.domain.errors import InvalidRequest, MalformedBody, QuantryError, RouteNotFound

_ROOMS = (
    admin,
    native,
    laboratory,
    advice,
    importance,
    datasets,
    adapters,
    exports,
    bundles,
    care,
    variants,
    desired,
    models,
    remote,
    uploads,
    jobs,
    workers,
    openai,
    openai_embeddings,
    openai_responses,
    ollama,
    ollama_models,
    ollama_pulls,
    ollama_create,
    anthropic,
    llama_server,
    llama_server_words,
    llama_server_state,
    llama_server_lora,
    llama_server_rerank,
)


def install(app: FastAPI) -> None:
    """Mount everything on `app`, whose `state.services` is set. Call it once, before the first request."""
    services: Services = app.state.services
    for room in _ROOMS:
        app.include_router(room.router, generate_unique_id_function=operation_id)
    app.add_exception_handler(RequestValidationError, _validation_failed)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(LevelInTheMaking, _in_the_making)
    options = services.options
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimits,
        max_body_bytes=options.max_body_bytes,
        read_timeout_seconds=options.body_read_timeout_seconds,
    )
    app.add_middleware(Gate, api_key_hashes=options.api_key_hashes, allowed_hosts=options.allowed_hosts)
    app.add_middleware(Access, metrics=services.metrics)
    app.openapi = document(app, asks_for_keys=bool(options.api_key_hashes))  # type: ignore[method-assign]


async def _validation_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(error_from_validation(error.errors()), dialect_of(request.scope["path"]))


async def _in_the_making(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LevelInTheMaking)
    response = accepted(error.job)
    response.headers["Preference-Applied"] = "respond-async"
    return response


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no route, not that method, or a body that its parser gave up on."""
    assert isinstance(error, HTTPException)
    path, status = request.scope["path"], error.status_code
    headers = dict(error.headers or {})
    if status == 405:
        headers["Allow"] = _allowed_methods(path) or headers.get("Allow", "")
    return error_response(_ours(status), dialect_of(path), status=status, headers=headers)


def _allowed_methods(path: str) -> str:
    """Starlette names the methods of the first route on a path; several routes of ours share one."""
    methods: set[str] = set()
    for room in _ROOMS:
        for route in room.router.routes:
            if isinstance(route, Route) and route.path_regex.match(path):
                methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _ours(status: int) -> QuantryError:
    if status == 404:
        return RouteNotFound("There is no such route; /openapi.json lists them all.")
    if status == 405:
        return RouteNotFound("This route does not take that method; the Allow header lists those it takes.")
    if status == 400:
        return MalformedBody("The body is no valid JSON; send one JSON object in UTF-8.")
    return InvalidRequest("The request is not valid HTTP for this route; see /openapi.json.")
