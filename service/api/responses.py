"""Domain error -> status and body: the one table of the API.

A path belongs to a dialect, and each dialect has its own shape of an error; statuses are the same in all. Raise a
QuantryError anywhere below access.py and it becomes the answer built here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from starlette.responses import Response

from service.api.shapes import DIGEST_PATTERN, PATH_PATTERN
from service.domain import errors
from service.domain.errors import InvalidParameter, MalformedBody, QuantryError
from service.domain.generation import Failed

# A class stands for its whole branch: the nearest ancestor in this table decides.
STATUS: dict[type[QuantryError], int] = {
    errors.QuantryError: 500,
    errors.InvalidRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.RangeNotSatisfiable: 416,
    errors.InvalidModel: 422,
    errors.DigestMismatch: 400,
    errors.Busy: 429,
    errors.Unavailable: 503,
    errors.RemoteFailed: 502,
    errors.DeadlineExceeded: 504,
    errors.DiskFull: 507,
    errors.JobFailed: 500,
}

# OpenAI's words for the kinds of error; clients of either dialect may switch on them.
TYPES: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    416: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "upstream_error",
    503: "unavailable_error",
    504: "timeout_error",
    507: "insufficient_storage_error",
}

# Seconds to wait where the error itself says nothing. Waiting alone does not make a variant fit.
RETRY_AFTER_SECONDS: dict[type[QuantryError], int | None] = {
    errors.QuantryError: None,
    errors.Busy: 1,
    errors.Unavailable: 5,
    errors.DoesNotFit: None,
}

MESSAGE_LIMIT = 2000
_NAME_LIMIT = 100
_PATTERNS = {
    DIGEST_PATTERN: "a digest, sha256: and 64 lower-case hexadecimal digits",
    PATH_PATTERN: "an absolute path on the server, from /",
}
_UNION_MEMBERS = frozenset(
    {"str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float", "none", "[key]"}
)
_MARKS = ("list[", "function-", "literal[", "constrained-list")


class Dialect(StrEnum):
    """Whose words an answer uses."""

    NATIVE = "native"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    LLAMA_SERVER = "llama-server"
    OLLAMA = "ollama"


_OPENAI_CODES = {"queue_full": "rate_limit_exceeded", "busy": "rate_limit_exceeded"}

# Anthropic's words for the kinds of error, where they are others.
_ANTHROPIC_TYPES: dict[int, str] = {
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    507: "api_error",
}

# llama-server's; by class, for it tells apart what has one status here.
_LLAMA_SERVER_TYPES: dict[type[QuantryError], str] = {
    errors.PromptTooLong: "exceed_context_size_error",
    errors.NotSupported: "not_supported_error",
    errors.Busy: "unavailable_error",
}

# Ollama's words and status for a full queue: its clients wait on that status, and some compare the words.
_OLLAMA_FULL = "server busy, please try again.  maximum pending requests exceeded"
_OLLAMA_STATUS: dict[type[QuantryError], int] = {errors.Busy: 503}

# How the paths of a dialect begin; all others are native.
_PATHS: dict[Dialect, tuple[str, ...]] = {
    Dialect.OPENAI: ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/responses"),
    Dialect.ANTHROPIC: ("/v1/messages",),
    Dialect.OLLAMA: ("/api/",),
    Dialect.LLAMA_SERVER: (
        "/apply-template",
        "/completion",
        "/detokenize",
        "/infill",
        "/lora-adapters",
        "/props",
        "/rerank",
        "/slots",
        "/tokenize",
        "/v1/rerank",
    ),
}


def dialect_of(path: str) -> Dialect:
    """The dialect that owns a path."""
    return next((dialect for dialect, begins in _PATHS.items() if path.startswith(begins)), Dialect.NATIVE)


def status_of(kind: type[QuantryError], dialect: Dialect = Dialect.NATIVE) -> int:
    """The HTTP status of an error class: that of its nearest ancestor in the table."""
    table = STATUS | _OLLAMA_STATUS if dialect is Dialect.OLLAMA else STATUS
    return next(table[ancestor] for ancestor in kind.__mro__ if ancestor in table)


def retry_after(error: QuantryError) -> int | None:
    """Whole seconds for Retry-After, or None where waiting does not help."""
    if error.retry_after_seconds is not None:
        return max(1, math.ceil(error.retry_after_seconds))
    return next(RETRY_AFTER_SECONDS[kind] for kind in type(error).__mro__ if kind in RETRY_AFTER_SECONDS)


def error_body(error: QuantryError, dialect: Dialect, status: int | None = None) -> dict[str, Any]:
    """The error object, ready for JSON."""
    status = status or status_of(type(error), dialect)
    message = error.message[:MESSAGE_LIMIT]
    match dialect:
        case Dialect.ANTHROPIC:
            details = {"error_code": error.code, "param": error.param}
            kind = _ANTHROPIC_TYPES.get(status, TYPES[status])
            return {"type": "error", "error": {"type": kind, "message": message, "details": details}}
        case Dialect.LLAMA_SERVER:
            kind = next((_LLAMA_SERVER_TYPES[of] for of in type(error).__mro__ if of in _LLAMA_SERVER_TYPES), "")
            # Its `code` is the status: the stable word for what went wrong stands beside it.
            more = {"type": kind or TYPES[status], "param": error.param, "reason": error.code}
            return {"error": {"code": status, "message": message, **more}}
        case Dialect.OLLAMA:
            # Clients read `error` as the message; the stable code stands beside it.
            return {"error": _OLLAMA_FULL if isinstance(error, errors.QueueFull) else message, "code": error.code}
        case _:
            code = _OPENAI_CODES.get(error.code, error.code) if dialect is Dialect.OPENAI else error.code
            return {"error": {"code": code, "message": message, "type": TYPES[status], "param": error.param}}


def error_response(
    error: QuantryError, dialect: Dialect, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error that comes before the first byte. `status` overrides the table (405, 408)."""
    status = status or status_of(type(error), dialect)
    sent = dict(headers or {})
    seconds = retry_after(error)
    if seconds is not None:
        sent["Retry-After"] = str(seconds)
    if status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        # The rest of the body is still on its way; the connection cannot carry another request.
        sent["Connection"] = "close"
    return json_response(error_body(error, dialect, status), status=status, headers=sent)


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON, encoded by msgspec."""
    return Response(msgspec.json.encode(content), status_code=status, headers=headers, media_type="application/json")


def error_from(
    code: str, message: str, param: str | None = None, retry_after_seconds: int | None = None
) -> QuantryError:
    """The error that a job row or a frame from a child carries."""
    return errors.by_code(code)(message, param=param, retry_after_seconds=retry_after_seconds)


def error_from_event(failed: Failed) -> QuantryError:
    """The error that a Failed event carries."""
    return error_from(failed.code, failed.message, failed.param, failed.retry_after_seconds)


def error_from_validation(problems: Sequence[Mapping[str, Any]]) -> QuantryError:
    """pydantic's list of problems as one of ours; names one field at fault and never echoes its value."""
    problem = _telling(problems)
    kind, location = str(problem["type"]), tuple(problem["loc"])
    place, path = (str(location[0]), location[1:]) if location else ("body", ())
    if kind == "json_invalid":
        return MalformedBody("The body is no JSON; send one JSON object.")
    if place == "body" and not path:
        if kind == "value_error":
            # A check of ours that spans several fields; its words are the whole message.
            return InvalidParameter(str(problem["msg"]).removeprefix("Value error, "))
        if kind == "missing_field":
            return InvalidParameter(str(problem["msg"]), param=str(problem["ctx"]["param"]))
        if kind == "missing":
            return MalformedBody("The body is missing; send one JSON object.")
        return MalformedBody("The body must be one JSON object.")
    param = field_path(path)
    if kind == "extra_forbidden":
        message = f"There is no field {param!r}; remove it, or see /openapi.json for the fields of this route."
    elif kind == "missing":
        message = f"The field {param!r} is missing; send it."
    else:
        said = _in_words(problem, problems)
        message = f"{param}: {said[0].lower()}{said[1:].rstrip('.')}."
    if len(problems) > 1:
        message += f" ({len(problems)} problems in all; this is the first.)"
    return InvalidParameter(message, param=param)


def _in_words(problem: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> str:
    """pydantic's sentence, and ours where its own is one for programmers."""
    context = problem.get("ctx", {})
    match problem["type"]:
        case "string_pattern_mismatch" if context["pattern"] in _PATTERNS:
            place = tuple(problem["loc"])[:2]
            words = [
                other["ctx"]["expected"]
                for other in problems
                if other["type"] == "literal_error" and tuple(other["loc"])[:2] == place
            ]
            return " or ".join([f"input should be {_PATTERNS[context['pattern']]}", *words])
        case "too_short":
            return f"there should be at least {context['min_length']} of them, not {context['actual_length']}"
        case "too_long":
            return f"there should be at most {context['max_length']} of them"
    return str(problem["msg"]).removeprefix("Value error, ")


def _telling(problems: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first problem. A field that takes several forms has one for each: then that of the form that was meant."""
    first = tuple(problems[0]["loc"])[:2]
    alike = [problem for problem in problems if tuple(problem["loc"])[:2] == first]

    def is_near(problem: Mapping[str, Any]) -> tuple[int, bool]:
        kind = str(problem["type"])
        return len(problem["loc"]), not (kind.endswith("_type") or kind == "literal_error")

    return max(alike, key=is_near)


def field_path(path: Sequence[Any]) -> str:
    """A location as people write it: `messages[0].content`. Names of union members are left out."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _is_field(part):
            text += f".{part}" if text else part
    shown = text or "body"
    return shown if len(shown) <= _NAME_LIMIT else shown[:_NAME_LIMIT] + "..."


def _is_field(part: Any) -> bool:
    # pydantic puts the member of a union into the path ("str", "list[str]"), and marks keys; clients never wrote it.
    if not isinstance(part, str) or part in _UNION_MEMBERS:
        return False
    return not part.startswith(_MARKS) and not part.endswith("Body")
