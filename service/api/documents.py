"""What /openapi.json says beside the routes themselves: the keys, and the errors that each route may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from service.api.auth import PUBLIC_PATHS
from service.api.shapes import ErrorBody

_MEANINGS: dict[int, str] = {
    400: "The request cannot be carried out as it stands; the message names the field and the remedy.",
    401: "No key, or one that is not known.",
    403: "A Host or an Origin that may not call this server, or a file that may not be imported by its path.",
    404: "Nothing under that name.",
    405: "Not with that method.",
    408: "The body took too long to arrive.",
    409: "The state of the store forbids it.",
    413: "The body is over its limit.",
    415: "The body is not plain JSON.",
    416: "The bytes lie elsewhere than there are any; the headers say where.",
    422: "The file is no model that can be used.",
    429: "Too much work is waiting; Retry-After says when to try again.",
    500: "Our own mistake, or a job that failed.",
    502: "Another server, from which something was to be fetched, did not give it.",
    503: "It cannot be served now; Retry-After says when to try again.",
    504: "A deadline of ours ran out.",
    507: "The disk is full.",
}
_ALWAYS = (400, 401, 403, 500)
_WITH_BODY = (408, 413, 415)


def errors(*statuses: int, body: bool = False, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the errors it may answer beside those that any route may. `body`: it reads one.

    `model` is the dialect's shape of an error.
    """
    every = sorted({*_ALWAYS, *(_WITH_BODY if body else ()), *statuses})
    return {status: {"model": model, "description": _MEANINGS[status]} for status in every}


# No schema: OpenAPI 3.1 has no words for the events of a stream. The descriptions of the routes say what they carry.
EVENT_STREAM: dict[str, Any] = {"text/event-stream": {}}


def operation_id(route: APIRoute) -> str:
    """`variants_delete` for the function `delete` of variants.py: short, stable and unique."""
    return f"{route.endpoint.__module__.rpartition('.')[2]}_{route.name}"


def document(app: FastAPI, *, asks_for_keys: bool) -> Callable[[], dict[str, Any]]:
    """`app.openapi` with the keys declared and FastAPI's own 422 left out: bad input is answered with 400 here."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        components = schema.setdefault("components", {})
        for name in ("HTTPValidationError", "ValidationError"):
            components.get("schemas", {}).pop(name, None)
        if asks_for_keys:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            schema["security"] = [{"bearer": []}, {"key": []}]
            for path in PUBLIC_PATHS:
                schema["paths"][path]["get"]["security"] = []
        for operations in schema.get("paths", {}).values():
            for operation in operations.values():
                _drop_foreign_422(operation)
        return schema

    return openapi


def _drop_foreign_422(operation: dict[str, Any]) -> None:
    found = operation.get("responses", {}).get("422")
    if found is not None and "HTTPValidationError" in str(found):
        del operation["responses"]["422"]
