"""One generation from the pool to the wire, the same for every dialect: begin, watch, count, end exactly once.

A request for several choices is one generation with as many Finished events. Errors before the first text become a
status; later ones travel in the stream. A client that hangs up cancels its generation, whether it waits in the queue,
for a load, or for text.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog
from starlette.requests import Request

from service.api.auth import caller
from service.api.responses import error_from_event
from service.api.services import Services
from service.api.streams import unless_gone
from service.domain.adapters import by_digest, check_uses
from service.domain.catalog import Adapter, Variant
from service.domain.errors import InternalError, InvalidGrammar, QuantryError, TemplateFailed
from service.domain.generation import (
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Thought,
    Timings,
    Token,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from service.metrics import Metrics
from service.workers.questions import Render, Rendered
from service.workers.stream import Stream

VARIANT_HEADER = "X-Quantry-Variant"

_log = structlog.get_logger("quantry.generation")


@dataclass(slots=True)
class Choice:
    """One text of a request, whole once `finished` is set."""

    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    deltas: list[ToolCallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        """All of it, without thinking and calls."""
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        """The thinking before it; empty where there was none, or where it was left in the text."""
        return "".join(self.thoughts)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls that it asks for, in order. The last one's arguments may have no end: the text was too long."""
        arguments: dict[int, list[str]] = {}
        heads: dict[int, ToolCallDelta] = {}
        for delta in self.deltas:
            heads.setdefault(delta.index, delta)
            arguments.setdefault(delta.index, []).append(delta.arguments)
        return [
            ToolCall(head.id or "", head.name or "", "".join(arguments[index])) for index, head in sorted(heads.items())
        ]

    @property
    def end(self) -> Finished:
        """Its last event; only for a choice that is whole."""
        assert self.finished is not None
        return self.finished


class Generation:
    """A running generation: an async iterator of its events, ending with a Finished for each choice, or one Failed.

    `cancel` may be called at any time and more than once; whoever holds this must call it in the end.
    """

    def __init__(self, variant: Variant, stream: Stream, metrics: Metrics, *, choices: int, began: float) -> None:
        self.variant = variant
        self.choices = choices
        self.created_at = datetime.now(UTC)
        self._stream = stream
        self._events = aiter(stream)
        self._metrics = metrics
        self._began = began
        self._first: GenerationEvent | None = None
        self._saw_text = False
        self._finished = 0
        self._ended = False

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, once the first event is there."""
        return self._stream.prompt_tokens

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> GenerationEvent:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._ended:
            raise StopAsyncIteration
        event = await self._next()
        if isinstance(event, Token | Thought | ToolCallDelta):
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

    async def whole(self) -> list[Choice]:
        """Every choice with all its text and its end; raises the error of a Failed."""
        choices = [Choice() for _ in range(self.choices)]
        async for event in self:
            match event:
                case Token():
                    choice = choices[event.choice]
                    choice.parts.append(event.text)
                    choice.logprobs.extend(event.logprobs)
                case Thought():
                    choices[event.choice].thoughts.append(event.text)
                case ToolCallDelta():
                    choices[event.choice].deltas.append(event)
                case Finished():
                    choices[event.choice].finished = event
                case Failed():
                    raise error_from_event(event)
        return choices

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
        if isinstance(event, Failed):
            self._ended = True
            self._metrics.generation_ended(event.code, 0, 0, 0.0)
            return
        usage = event.usage
        # All choices were drawn from one prompt.
        prompt_tokens = 0 if self._finished else usage.prompt_tokens
        self._finished += 1
        self._ended = self._finished == self.choices
        self._metrics.generation_ended(
            event.reason.value, prompt_tokens, usage.completion_tokens, event.timings.generation_seconds
        )


async def begin(
    services: Services, variant: Variant, asked: GenerationRequest, request: Request, *, grammar_field: str
) -> Generation:
    """Submit what is asked in the name of whoever sent `request`, and wait for its first event.

    `grammar_field` is the field that a grammar came in, to be named when it is refused.

    Raises its error if it fails before any text, TemplateFailed for messages where the model's template is broken,
    ModelNotFound for its draft, AdapterNotFound for its adapters, and ClientGone if the client does not wait that long.
    """
    began = time.monotonic()
    _check_template(variant, asked)
    sender = caller(request.scope)
    draft = await _draft(services, asked.draft)
    asked = replace(asked, draft=None if draft is None else draft.name, cache_salt=sender.salt, client=sender.name)
    adapters: tuple[Adapter, ...] = ()
    if asked.adapters:
        check_uses(asked.adapters)
        names = [use.name for use in asked.adapters]
        found = await asyncio.to_thread(services.catalog.adapters.find, variant.model, names)
        uses, adapters = by_digest(asked.adapters, found)
        asked = replace(asked, adapters=uses)

    async def submit() -> Generation:
        stream = await services.pool.submit(variant, asked, draft if asked.speculate else None, adapters)
        generation = Generation(variant, stream, services.metrics, choices=asked.choices, began=began)
        try:
            await generation.open()
        except BaseException as error:
            generation.cancel()
            if isinstance(error, InvalidGrammar) and error.param != "tools":
                error.param = grammar_field
            raise
        return generation

    return await unless_gone(request.receive, submit())


async def whole(
    services: Services, variant: Variant, asked: GenerationRequest, request: Request, *, grammar_field: str
) -> tuple[Generation, list[Choice]]:
    """Run a request to its end: the generation and its choices. Raises as `begin`."""
    generation = await begin(services, variant, asked, request, grammar_field=grammar_field)
    try:
        choices = await unless_gone(request.receive, generation.whole())
    finally:
        generation.cancel()
    return generation, choices


async def rendered(services: Services, variant: Variant, asked: GenerationRequest) -> Rendered:
    """The prompt of a request, as text and tokens, from a worker that is loaded if need be; nothing is generated.

    Raises TemplateFailed for messages where the model's template is broken, before any worker is loaded for it.
    """
    _check_template(variant, asked)
    return await services.pool.ask(variant, Render(asked))


def total(ends: Sequence[Finished]) -> tuple[Usage, Timings]:
    """What all choices of a request took together: one prompt, and the time until the first token, then to the last."""
    usages, timings = [end.usage for end in ends], [end.timings for end in ends]
    usage = Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        # Choices after the first may find the prompt in the cache because the first has left it there.
        cached_tokens=min(usage.cached_tokens for usage in usages),
        draft_tokens=sum(usage.draft_tokens for usage in usages),
        accepted_tokens=sum(usage.accepted_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
    # All were put into the queue at the same time, and may have been written side by side or one after another.
    first = min(timings, key=_until_first_token)
    last_token = max(_until_first_token(timing) + timing.generation_seconds for timing in timings)
    return usage, replace(first, generation_seconds=last_token - _until_first_token(first))


def _until_first_token(timings: Timings) -> float:
    return timings.queue_seconds + timings.prompt_seconds


def _check_template(variant: Variant, asked: GenerationRequest) -> None:
    """A template that was found to be of no use is not tried in a worker, where it would take time from others."""
    fault = variant.facts.template_fault
    if fault is not None and asked.messages and asked.template is None:
        raise TemplateFailed(f"This model's chat template is of no use: {fault}", param="messages")


async def _draft(services: Services, name: str | None) -> Variant | None:
    if name is None:
        return None
    try:
        return await services.servable(name)
    except QuantryError as error:
        error.param = "draft"
        raise


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `gen-` and 24 hexadecimal digits."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"
