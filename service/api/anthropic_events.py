"""From events of a generation to Anthropic's: blocks that begin, grow and end. Plain dictionaries; knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from service.api.generation import Choice
from service.domain.generation import Finished, FinishReason, Thought, Token, ToolCallDelta, Usage

Event = dict[str, Any]

# Clients send it back with the thinking; there is nothing here to be proven by it.
SIGNATURE = ""


class Blocks:
    """The blocks of one streamed message: at most one is open, and their indices count up."""

    def __init__(self, *, shows_thinking: bool) -> None:
        """`shows_thinking` False leaves the text of the thinking out, and its blocks in."""
        self._shows_thinking = shows_thinking
        self._index = -1
        self._open: str | tuple[str, int] | None = None

    def push(self, event: Token | Thought | ToolCallDelta) -> Iterator[Event]:
        """What an event adds."""
        match event:
            case Thought():
                yield from self._enter("thinking", {"type": "thinking", "thinking": "", "signature": SIGNATURE})
                if self._shows_thinking:
                    yield self._delta({"type": "thinking_delta", "thinking": event.text})
            case Token():
                if event.text:
                    yield from self._enter("text", {"type": "text", "text": ""})
                    yield self._delta({"type": "text_delta", "text": event.text})
            case ToolCallDelta():
                head = {"type": "tool_use", "id": event.id or "", "name": event.name or "", "input": {}}
                yield from self._enter(("tool_use", event.index), head)
                yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})

    def close(self) -> Iterator[Event]:
        """End the block that is open, if one is."""
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._open = None

    def _enter(self, kind: str | tuple[str, int], head: Event) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self.close()
        self._index += 1
        self._open = kind
        yield {"type": "content_block_start", "index": self._index, "content_block": head}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def content(choice: Choice, *, shows_thinking: bool) -> list[Event]:
    """The blocks of a whole message."""
    found: list[Event] = []
    if choice.reasoning:
        thinking = choice.reasoning if shows_thinking else ""
        found.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
    if choice.text:
        found.append({"type": "text", "text": choice.text})
    for call in choice.tool_calls:
        found.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)})
    return found


def stop(finished: Finished, max_tokens: int | None) -> Event:
    """Why a message ended: its `stop_reason` and `stop_sequence`."""
    if finished.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop}
    reason = {
        FinishReason.STOP: "end_turn",
        FinishReason.TOOL_CALLS: "tool_use",
        FinishReason.LENGTH: "max_tokens",
    }[finished.reason]
    if reason == "max_tokens" and max_tokens is not None and finished.usage.completion_tokens < max_tokens:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": None}


def usage(counted: Usage) -> Event:
    """Tokens, as Anthropic counts them: those from the cache apart from the others."""
    return {
        "input_tokens": counted.prompt_tokens - counted.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached_tokens,
        "output_tokens": counted.completion_tokens,
        "output_tokens_details": {"thinking_tokens": counted.reasoning_tokens},
    }


def _arguments(text: str) -> Any:
    """A call's arguments; those that were cut off have no value."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
