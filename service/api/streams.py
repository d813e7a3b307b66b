"""Bytes on their way out: server-sent events, slow readers, and clients that hang up.

Whatever a client does, the work behind its answer ends: a hang-up cancels it at once, a reader that lets its stream
stand still for too long is cut off. Knows ASGI, and nothing of what the events mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.connections import cutter
from service.api.responses import Dialect, dialect_of, error_body
from service.domain.errors import QuantryError, SlowReader

T = TypeVar("T")

HEARTBEAT = b": alive\n\n"
DONE = b"data: [DONE]\n\n"
_ENCODER = msgspec.json.Encoder()


class ClientGone(Exception):
    """The client hung up; there is nobody left to answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, or cancel it and raise ClientGone as soon as the client hangs up.

    The body must have been read: what `receive` brings from now on can only be the hang-up.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for other in (task, watcher):
            if not other.done():
                other.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


def encode(value: Any) -> bytes:
    """JSON on one line that no line splitter breaks: Unicode's own line ends are escaped as well."""
    data = _ENCODER.encode(value)
    # SSE splits at \r and \n only, which JSON escapes; many clients split at these three too (str.splitlines).
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data.replace(b"\xc2\x85", b"\\u0085") if b"\xc2\x85" in data else data


def sse(value: Any, *, event: str | None = None, event_id: int | None = None) -> bytes:
    """One event. `event` is a word of ours and never a client's or a model's text."""
    head = b"" if event_id is None else b"id: %d\n" % event_id
    if event is not None:
        head += b"event: %s\n" % event.encode("ascii")
    return b"%sdata: %s\n\n" % (head, encode(value))


def line(value: Any) -> bytes:
    """One line of a stream of JSON values."""
    return encode(value) + b"\n"


class EventStream(Response):
    """`text/event-stream`. `frames` are complete events; `close` is called once the stream ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], None],
        stall_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._close = close
        self._stall_seconds = stall_seconds
        self._sending_since: float | None = None  # by the loop's clock; None while there is nothing to send
        self._all_sent = False
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None
        # Proxies must pass events on as they come.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every frame; raises ClientGone when the client leaves, SlowReader when it stops reading.

        A slow reader's stream ends with an error event first, unless all its frames were sent.
        """
        try:
            await unless_gone(receive, self._pump(send))
        except SlowReader as error:
            self._close()
            cut = cutter(scope)
            if cut is not None:
                cut(b"" if self._all_sent else self._last_words(error, dialect_of(scope["path"])))
            raise
        finally:
            self._close()

    def _last_words(self, error: QuantryError, dialect: Dialect) -> bytes:
        """What a slow reader's stream ends with."""
        return error_event(error, dialect)

    async def _pump(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._sending_since = loop.time()
        self._watch(loop, task)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._sending_since = None
            async with aclosing(self._frames):
                async for frame in self._frames:
                    self._sending_since = loop.time()
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
                    self._sending_since = None
            self._all_sent = True
            self._sending_since = loop.time()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            raise SlowReader(
                f"The stream was not read for {self._stall_seconds:g} seconds and was cut off; read it as it comes."
            ) from None
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _watch(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        """Look again when the frame on its way will have taken too long: one timer a stream, and none a frame."""
        now = loop.time()
        due = (now if self._sending_since is None else self._sending_since) + self._stall_seconds
        if due <= now:
            self._stalled = True
            task.cancel()
        else:
            self._timer = loop.call_at(due, self._watch, loop, task)


class LineStream(EventStream):
    """`application/x-ndjson`: the same for frames that are lines."""

    media_type = "application/x-ndjson"


def error_event(error: QuantryError, dialect: Dialect) -> bytes:
    """The event that ends a stream badly, as the dialect writes it."""
    if dialect is Dialect.OLLAMA:
        return line(error_body(error, dialect))
    is_nameless = dialect in (Dialect.OPENAI, Dialect.LLAMA_SERVER)
    return sse(error_body(error, dialect), event=None if is_nameless else "error")
