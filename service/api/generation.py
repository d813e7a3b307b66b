"""One generation from the pool to the wire, the same for every dialect: begin, watch, count, end exactly once.

Errors before the first text become a status; later ones travel in the stream. A client that hangs up cancels its
generation, whether it waits in the queue, for a load, or for text.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

import structlog
from starlette.types import Receive

from service.api.responses import error_from_event
from service.api.services import Services
from service.api.streams import unless_gone
from service.domain.catalog import Variant
from service.domain.errors import InternalError, QuantryError
from service.domain.generation import Failed, Finished, GenerationEvent, GenerationRequest, Token
from service.metrics import Metrics
from service.workers.stream import Stream

VARIANT_HEADER = "X-Quantry-Variant"

_log = structlog.get_logger("quantry.generation")


class Generation:
    """A running generation: an async iterator of its events, ending with exactly one Finished or Failed.

    `cancel` may be called at any time and more than once; whoever holds this must call it in the end.
    """

    def __init__(self, variant: Variant, stream: Stream, metrics: Metrics, began: float) -> None:
        self.variant = variant
        self.created_at = datetime.now(UTC)
        self._stream = stream
        self._events = aiter(stream)
        self._metrics = metrics
        self._began = began
        self._first: GenerationEvent | None = None
        self._saw_text = False
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> GenerationEvent:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._ended:
            raise StopAsyncIteration
        event = await self._next()
        if isinstance(event, Token):
            if not self._saw_text:
                self._saw_text = True
                self._metrics.first_token(time.monotonic() - self._began)
            return event
        self._end(event)
        return event

    async def open(self) -> None:
        """Wait for the first event; raise the error if that is a Failed."""
        first = await anext(self)
        if isinstance(first, Failed):
            raise error_from_event(first)
        self._first = first

    def cancel(self) -> None:
        """Stop it, if it still runs, and free what it holds."""
        if not self._ended:
            self._ended = True
            self._metrics.generation_ended("cancelled", 0, 0, 0.0)
        self._stream.cancel()

    async def whole(self) -> tuple[str, Finished]:
        """All the text and the end; raises the error of a Failed."""
        parts: list[str] = []
        async for event in self:
            match event:
                case Token():
                    parts.append(event.text)
                case Finished():
                    return "".join(parts), event
                case Failed():
                    raise error_from_event(event)
        raise InternalError("The generation ended without its last event; try again.")

    async def _next(self) -> GenerationEvent:
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            _log.error("stream_without_end", variant=self.variant.name)
            error: QuantryError = InternalError("The generation ended without its last event; try again.")
        except QuantryError as raised:
            error = raised
        except Exception:
            _log.exception("stream_crashed", variant=self.variant.name)
            error = InternalError("Something went wrong here; the server's log has the details.")
        return Failed(error.code, error.message, error.param, error.retry_after_seconds)

    def _end(self, event: Finished | Failed) -> None:
        self._ended = True
        if isinstance(event, Finished):
            usage = event.usage
            self._metrics.generation_ended(
                event.reason.value, usage.prompt_tokens, usage.completion_tokens, event.timings.generation_seconds
            )
        else:
            self._metrics.generation_ended(event.code, 0, 0, 0.0)


async def begin(services: Services, variant: Variant, request: GenerationRequest, receive: Receive) -> Generation:
    """Submit a request and wait for its first event.

    Raises its error if it fails before any text, and ClientGone if the client does not wait that long.
    """
    began = time.monotonic()

    async def submit() -> Generation:
        stream = await services.pool.submit(variant, request)
        generation = Generation(variant, stream, services.metrics, began)
        try:
            await generation.open()
        except BaseException:
            generation.cancel()
            raise
        return generation

    return await unless_gone(receive, submit())


async def whole(
    services: Services, variant: Variant, request: GenerationRequest, receive: Receive
) -> tuple[Generation, str, Finished]:
    """Run a request to its end: the generation, its text and its last event. Raises as `begin`."""
    generation = await begin(services, variant, request, receive)
    try:
        text, finished = await unless_gone(receive, generation.whole())
    finally:
        generation.cancel()
    return generation, text, finished


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `gen-` and 24 hexadecimal digits."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"
