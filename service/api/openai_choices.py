"""How text, thinking, calls and log-probabilities sit in a choice of OpenAI's, whole and streamed. Pure.

One class for each of the two routes: chat and raw text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.api import logprobs
from service.api.generation import Choice
from service.api.openai_tools import call_shape
from service.domain.generation import FinishReason, GenerationRequest, TokenLogprob, ToolCallDelta

# Makes the `logprobs` of one choice from the tokens of an event; called for all of them in turn.
Report = Callable[[Sequence[TokenLogprob]], Any]
Content = dict[str, Any]  # the part of a choice that the routes do not share


class RawText:
    """`POST /v1/completions`."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, choice: Choice) -> Content:
        """All of a choice."""
        return {"text": choice.text}

    def opening(self, *, is_call: bool) -> Content | None:
        """The beginning of a streamed choice, if it has one."""
        return None

    def text(self, text: str) -> Content:
        """More text."""
        return {"text": text}

    def thought(self, text: str) -> Content:
        """More thinking; there is none without a template."""
        return {"text": text}

    def call(self, delta: ToolCallDelta) -> list[Content]:
        """More of a call; there is none without a template."""
        return []

    def ending(self) -> Content:
        """The end of a streamed choice."""
        return {"text": ""}

    def reason(self, reason: FinishReason) -> str:
        """Why the choice ended."""
        return reason.value

    def report(self, asked: GenerationRequest) -> Report:
        """For one choice."""
        return logprobs.TokenColumns(asked.prompt or "").add


class Chat(RawText):
    """`POST /v1/chat/completions`; with `has_functions` calls are written in OpenAI's older way."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, has_functions: bool = False) -> None:
        self._has_functions = has_functions

    def whole(self, choice: Choice) -> Content:
        """The message; `content` is null where there are only calls."""
        calls = choice.tool_calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not choice.text else choice.text,
            "refusal": None,
        }
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if calls and self._has_functions:
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            message["tool_calls"] = [call_shape(call) for call in calls]
        return {"message": message}

    def opening(self, *, is_call: bool) -> Content | None:
        """The role, with no text where a call is all that comes first."""
        return {"delta": {"role": "assistant", "content": None if is_call else "", "refusal": None}}

    def text(self, text: str) -> Content:
        """More text."""
        return {"delta": {"content": text}}

    def thought(self, text: str) -> Content:
        """More thinking, under the name that DeepSeek gave it."""
        return {"delta": {"reasoning_content": text}}

    def call(self, delta: ToolCallDelta) -> list[Content]:
        """More of a call. As with OpenAI a call begins with its name and no arguments, which then come in pieces."""
        pieces: list[dict[str, Any]] = []
        if delta.name is not None:
            function = {"name": delta.name, "arguments": ""}
            pieces.append({"id": delta.id, "type": "function", "function": function})
        if delta.arguments:
            pieces.append({"function": {"arguments": delta.arguments}})
        if self._has_functions:
            return [{"delta": {"function_call": piece["function"]}} for piece in pieces]
        return [{"delta": {"tool_calls": [{"index": delta.index, **piece}]}} for piece in pieces]

    def ending(self) -> Content:
        """The end of a streamed choice."""
        return {"delta": {}}

    def reason(self, reason: FinishReason) -> str:
        """Why the choice ended."""
        return "function_call" if self._has_functions and reason is FinishReason.TOOL_CALLS else reason.value

    def report(self, asked: GenerationRequest) -> Report:
        """For one choice."""
        return lambda drawn: {"content": logprobs.entries(drawn), "refusal": None}
