"""How much a request may bring: bytes counted as they come, seconds; and only plain, strict JSON. ASGI.

JSON bodies are read here, whole and bounded, and handed on as one message, so no route reads a socket. Uploads of
blobs and datasets pass through: their routes count for themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.responses import Dialect, dialect_of, error_response
from service.api.streams import ClientGone
from service.api.strict_json import check_json
from service.domain.errors import DeadlineExceeded, TooLarge, UnsupportedMediaType

# Their routes read raw bytes, and count for themselves.
UPLOAD_PREFIXES = ("/v1/blobs/", "/v1/datasets/", "/api/blobs/")
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})

# Bytes of a refused body that are read and thrown away, so that the client gets to see the refusal: closing a
# socket with unread bytes resets the connection and may take the answer with it.
DISCARD_BYTES = 16 << 20
DISCARD_SECONDS = 2.0

# Beyond this size a body is checked off the event loop.
_LARGE_BYTES = 64 << 10


class BodyLimits:
    """Reads and checks JSON bodies before the router sees the request."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, read_timeout_seconds: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._read_timeout_seconds = read_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body read.

        Raises TooLarge, UnsupportedMediaType, and what `check_json` raises.
        """
        if scope["type"] != "http" or scope["method"] not in _BODY_METHODS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UnsupportedMediaType("Compressed bodies are not read; send the body without Content-Encoding.")
        if scope["path"].startswith(UPLOAD_PREFIXES):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(receive, declared_length(headers))
        except TimeoutError:
            await late_body_response(scope["path"], self._read_timeout_seconds)(scope, receive, send)
            return
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if body and dialect_of(scope["path"]) is Dialect.OLLAMA:
            # Its documents show curl without the header, which then says that a form is sent. Pages of other origins,
            # which could do the same, have been refused by their Origin.
            scope = {**scope, "headers": _as_json(scope["headers"])}
        elif (body or content_type) and content_type != b"application/json":
            raise UnsupportedMediaType("The body must be JSON; send it with Content-Type: application/json.")
        if len(body) > _LARGE_BYTES:
            await asyncio.to_thread(check_json, body)
        elif body:
            check_json(body)
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive, declared_bytes: int | None) -> bytes:
        try:
            async with asyncio.timeout(self._read_timeout_seconds):
                if declared_bytes is not None and declared_bytes > self._max_body_bytes:
                    raise self._too_large()
                chunks: list[bytes] = []
                size = 0
                while True:
                    chunk, more = await next_chunk(receive)
                    size += len(chunk)
                    if size > self._max_body_bytes:
                        raise self._too_large()
                    chunks.append(chunk)
                    if not more:
                        return b"".join(chunks)
        except TooLarge:
            await discard(receive)
            raise

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than {self._max_body_bytes} bytes; send less, or raise QUANTRY_MAX_BODY_BYTES."
        )


def late_body_response(path: str, timeout_seconds: float) -> Response:
    """408 for a body that did not come in time. The delay is the client's: not our own 504."""
    error = DeadlineExceeded(f"The body did not arrive within {timeout_seconds:g} seconds; send it faster.")
    return error_response(error, dialect_of(path), status=408)


def declared_length(headers: dict[bytes, bytes]) -> int | None:
    """Content-Length in bytes, or None where there is none that is a number."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else None


async def next_chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next bytes of the body and whether more may follow; ClientGone when the client hangs up instead."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def discard(receive: Receive) -> None:
    """Read and drop what is left of a body, within `DISCARD_BYTES` and `DISCARD_SECONDS`."""
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            seen, more = 0, True
            while more and seen < DISCARD_BYTES:
                chunk, more = await next_chunk(receive)
                seen += len(chunk)
    except (TimeoutError, ClientGone):
        return


def _as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name != b"content-type"]
    return [*kept, (b"content-type", b"application/json")]


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
