"""The outermost layer: request ids, one log line a request, metrics, and every error turned into its answer. ASGI.

Prompts and bodies are never logged. An error that is none of ours is logged with its trace and answered as
`internal_error` without one.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.responses import Dialect, dialect_of, error_response
from service.api.streams import ClientGone
from service.domain.errors import InternalError, QuantryError, SlowReader
from service.metrics import Metrics

REQUEST_ID_HEADER = b"x-request-id"
_ANTHROPIC_REQUEST_ID_HEADER = b"request-id"  # where its clients look
HUNG_UP_STATUS = 499  # only in the log and the metrics: nobody is there to read it
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PATH_LIMIT = 200

_log = structlog.get_logger("quantry.access")


class Access:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens below."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, _request_id(scope), dialect_of(scope["path"]))
        started = time.monotonic()
        outcome = "answered"
        with structlog.contextvars.bound_contextvars(request_id=answer.request_id.decode()):
            try:
                outcome = await self._run(scope, receive, answer)
            finally:
                self._account(scope, answer, outcome, time.monotonic() - started)

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer) -> str:
        try:
            await self._app(scope, receive, answer.send)
            return "answered"
        except ClientGone:
            answer.status = answer.status or HUNG_UP_STATUS
            return "hung_up"
        except QuantryError as error:
            reason, outcome = error, error.code
        except Exception:
            # The only place where a trace is written; the answer carries none.
            _log.exception("request_crashed", method=scope["method"], path=_shown(scope["path"]))
            reason = InternalError(
                "Something went wrong here; the server's log has the details under this request's id."
            )
            outcome = reason.code
        if answer.status is None:
            await _refuse(scope, receive, answer, reason)
        elif not isinstance(reason, SlowReader):
            _log.error("failed_after_first_byte", code=outcome)
        return outcome

    def _account(self, scope: Scope, answer: _Answer, outcome: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        status = answer.status or HUNG_UP_STATUS
        self._metrics.request_ended(route, status, seconds)
        _log.info(
            "request", method=scope["method"], path=_shown(scope["path"]), route=route, status=status,
            outcome=outcome, seconds=round(seconds, 6), sent_bytes=answer.sent_bytes,
        )  # fmt: skip


class _Answer:
    """Notes what goes out and adds the request id to its headers."""

    def __init__(self, send: Send, request_id: bytes, dialect: Dialect) -> None:
        self._send = send
        self._dialect = dialect
        self.request_id = request_id
        self.status: int | None = None
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (REQUEST_ID_HEADER, self.request_id)]
            if self._dialect is Dialect.ANTHROPIC:
                headers.append((_ANTHROPIC_REQUEST_ID_HEADER, self.request_id))
            message["headers"] = headers
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


async def _refuse(scope: Scope, receive: Receive, answer: _Answer, error: QuantryError) -> None:
    await error_response(error, dialect_of(scope["path"]))(scope, receive, answer.send)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()


def _shown(path: Any) -> str:
    """A path that cannot break a log line: control characters escaped, length bounded."""
    return str(path)[:_PATH_LIMIT].encode("unicode_escape").decode("ascii")
