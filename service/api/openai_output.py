"""The output of OpenAI's responses route: items made from events, and what a stream says of them, in its order. Pure.

    output_item.added, [content_part.added,] deltas ..., done, [content_part.done,] output_item.done

for each item in turn: thinking, a message, a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from service.api import logprobs
from service.api.generation import new_id
from service.domain.generation import Thought, Token, TokenLogprob, ToolCallDelta

Event = dict[str, Any]
_Kind = Literal["reasoning", "message", "function_call"]


class Output:
    """Takes the events of one generation; `items` are those that are whole."""

    def __init__(self, *, with_logprobs: bool) -> None:
        self._with_logprobs = with_logprobs
        self.items: list[dict[str, Any]] = []
        self._kind: _Kind | None = None
        self._item: dict[str, Any] = {}  # the one in the making, as it began
        self._parts: list[str] = []
        self._drawn: list[TokenLogprob] = []
        self._early: list[TokenLogprob] = []  # of a message whose text has not begun
        self._call: int | None = None  # number of the call in the making

    def push(self, event: Token | Thought | ToolCallDelta) -> Iterator[Event]:
        """What a stream says of the event."""
        match event:
            case Thought():
                if self._kind != "reasoning":
                    yield from self._close("completed")
                    yield from self._open("reasoning", {"id": new_id("rs_"), "summary": [], "content": []})
                self._parts.append(event.text)
                yield self._about("reasoning_text.delta", content_index=0, delta=event.text)
            case Token():
                drawn = [*self._early, *event.logprobs]
                self._early = []
                if self._kind != "message" and not event.text:
                    self._early = drawn
                    return
                if self._kind != "message":
                    yield from self._close("completed")
                    yield from self._open("message", {"id": new_id("msg_"), "role": "assistant", "content": []})
                self._parts.append(event.text)
                self._drawn += drawn
                yield self._about("output_text.delta", content_index=0, delta=event.text, logprobs=self._report(drawn))
            case ToolCallDelta():
                if self._kind != "function_call" or self._call != event.index:
                    yield from self._close("completed")
                    self._call = event.index
                    head = {"id": new_id("fc_"), "arguments": "", "call_id": event.id or "", "name": event.name or ""}
                    yield from self._open("function_call", head)
                if event.arguments:
                    self._parts.append(event.arguments)
                    yield self._about("function_call_arguments.delta", delta=event.arguments)

    def finish(self, *, is_whole: bool) -> Iterator[Event]:
        """No more events will come. An answer of nothing is an empty message."""
        if self._kind is None and not self.items:
            yield from self._open("message", {"id": new_id("msg_"), "role": "assistant", "content": []})
        yield from self._close("completed" if is_whole else "incomplete")

    def _open(self, kind: _Kind, head: dict[str, Any]) -> Iterator[Event]:
        self._kind, self._parts, self._drawn = kind, [], []
        self._item = {**head, "type": kind, "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": len(self.items), "item": self._item}
        if kind != "function_call":
            yield self._about("content_part.added", content_index=0, part=self._part(""))

    def _close(self, status: str) -> Iterator[Event]:
        if self._kind is None:
            return
        text = "".join(self._parts)
        item = {**self._item, "status": status}
        if self._kind == "function_call":
            item["arguments"] = text
            yield self._about("function_call_arguments.done", name=item["name"], arguments=text)
        else:
            part = self._part(text)
            item["content"] = [part]
            if self._kind == "message":
                yield self._about("output_text.done", content_index=0, text=text, logprobs=part["logprobs"])
            else:
                yield self._about("reasoning_text.done", content_index=0, text=text)
            yield self._about("content_part.done", content_index=0, part=part)
        yield {"type": "response.output_item.done", "output_index": len(self.items), "item": item}
        self.items.append(item)
        self._kind = None

    def _about(self, name: str, /, **fields: Any) -> Event:
        return {"type": f"response.{name}", "item_id": self._item["id"], "output_index": len(self.items), **fields}

    def _part(self, text: str) -> dict[str, Any]:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._report(self._drawn)}

    def _report(self, drawn: list[TokenLogprob]) -> list[dict[str, Any]]:
        return logprobs.entries(drawn) if self._with_logprobs else []
