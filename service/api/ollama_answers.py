"""From events to Ollama's answers: lines of JSON, the last of which has the figures; or one value with all of it.

Durations are nanoseconds. Knows no routes and no store.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from service.api import logprobs
from service.api.generation import Choice, Generation
from service.api.responses import Dialect, error_from_event
from service.api.streams import error_event, line
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    Thought,
    Timings,
    Token,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

NANOSECONDS = 1_000_000_000

# Brings the ids of prompt and text for the last line; None where they are not sent.
History = Callable[[str], Awaitable[list[int] | None]]


class Writer:
    """Writes the answers of one route: `generate` has its text in `response`, `chat` in a `message`."""

    def __init__(self, model: str, *, is_chat: bool, report: bool) -> None:
        """`model` is the name as the client sent it; with `report` log-probabilities are sent."""
        self._model = model
        self._is_chat = is_chat
        self._report = report

    def part(self, text: str = "", thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """Text, thinking or calls, not the last of it."""
        return {**self._head(), **self._content(text, thinking, calls), "done": False}

    def with_report(self, value: dict[str, Any], drawn: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`value` with the log-probabilities of its tokens, where they were asked for."""
        return {**value, "logprobs": logprobs.entries(drawn)} if self._report and drawn else value

    def last(
        self,
        end: Finished,
        text: str = "",
        thinking: str = "",
        calls: Sequence[ToolCall] = (),
        context: list[int] | None = None,
    ) -> dict[str, Any]:
        """The last line, or all of the answer."""
        reason = "length" if end.reason is FinishReason.LENGTH else "stop"
        answer = {**self._head(), **self._content(text, thinking, calls), "done": True, "done_reason": reason}
        if context is not None:
            answer["context"] = context
        return {**answer, **figures(end.usage, end.timings)}

    def without_text(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return {**self._head(), **self._content("", "", ()), "done": True, "done_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": stamp()}

    def _content(self, text: str, thinking: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if not self._is_chat:
            return {"response": text, **said}
        shown = [shape for index, call in enumerate(calls) if (shape := call_shape(call, index))]
        if shown:
            said["tool_calls"] = shown
        return {"message": {"role": "assistant", "content": text, **said}}


def whole(writer: Writer, choice: Choice, context: list[int] | None) -> dict[str, Any]:
    """All of an answer at once."""
    answer = writer.last(choice.end, choice.text, choice.reasoning, choice.tool_calls, context)
    return writer.with_report(answer, choice.logprobs)


async def lines(running: Generation, writer: Writer, history: History | None) -> AsyncGenerator[bytes, None]:
    """The events of a generation, each as its line. A call is sent when it is whole, as Ollama does."""
    choice, sent = Choice(), 0
    async for event in running:
        match event:
            case Token():
                choice.parts.append(event.text)
                yield line(writer.with_report(writer.part(event.text), event.logprobs))
            case Thought():
                yield line(writer.part(thinking=event.text))
            case ToolCallDelta():
                begins = not choice.deltas or event.index > choice.deltas[-1].index
                if begins and len(choice.tool_calls) > sent:
                    yield line(_calls(writer, choice.tool_calls[sent:], sent))
                    sent = len(choice.tool_calls)
                choice.deltas.append(event)
            case Finished():
                if len(choice.tool_calls) > sent:
                    yield line(_calls(writer, choice.tool_calls[sent:], sent))
                context = None if history is None else await history(choice.text)
                yield line(writer.last(event, context=context))
            case Failed():
                yield error_event(error_from_event(event), Dialect.OLLAMA)


def _calls(writer: Writer, calls: Sequence[ToolCall], before: int) -> dict[str, Any]:
    value = writer.part(calls=calls)
    for shown in value["message"].get("tool_calls", ()):
        shown["function"]["index"] += before
    return value


def call_shape(call: ToolCall, index: int) -> dict[str, Any] | None:
    """A call as Ollama sends it, its arguments an object. None for one that was cut off before it was whole."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def figures(usage: Usage, timings: Timings) -> dict[str, int]:
    """Counts, and durations in nanoseconds."""
    total = timings.queue_seconds + timings.load_seconds + timings.prompt_seconds + timings.generation_seconds
    return {
        "total_duration": nanoseconds(total),
        "load_duration": nanoseconds(timings.load_seconds),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(timings.prompt_seconds),
        "eval_count": usage.completion_tokens,
        "eval_duration": nanoseconds(timings.generation_seconds),
    }


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds * NANOSECONDS)


def stamp() -> str:
    """The time of day, RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
