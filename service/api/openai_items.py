"""Items of OpenAI's responses route: what comes in, earlier answers included, as a conversation. pydantic; no route.

A conversation is a list of items; the domain's messages are made from it anew for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, StringConstraints, Tag, WithJsonSchema

from service.api.openai_messages import CallId
from service.api.openai_shapes import TEXT, Lenient
from service.api.openai_tools import ToolName
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import Message, ToolCall

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_KNOWN_PARTS = (*_TEXT_PARTS, "refusal")


class PartBody(Lenient):
    """One part of an item; only text is carried out."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "properties": {"type": {"enum": [*_TEXT_PARTS]}, "text": TEXT},
                    "required": ["type", "text"],
                },
                {"properties": {"type": {"const": "refusal"}, "refusal": TEXT}, "required": ["type", "refusal"]},
            ]
        }
    )

    type: Annotated[str, WithJsonSchema({"enum": [*_KNOWN_PARTS]})]
    text: Annotated[str | None, WithJsonSchema(TEXT)] = None
    refusal: Annotated[str | None, WithJsonSchema(TEXT)] = None


class MessageItemBody(Lenient):
    """Words of the user, the system or the assistant."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[PartBody]
    id: ItemId | None = None
    status: Status | None = None


class CallItemBody(Lenient):
    """A call that the model has asked for."""

    type: Literal["function_call"]
    call_id: CallId
    name: ToolName
    arguments: str
    id: ItemId | None = None
    status: Status | None = None


class ResultItemBody(Lenient):
    """What a call has brought."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | list[PartBody]
    id: ItemId | None = None
    status: Status | None = None


class ReasoningItemBody(Lenient):
    """What the model has thought before."""

    type: Literal["reasoning"]
    summary: list[PartBody] = Field(default_factory=list)
    content: list[PartBody] | None = None
    id: ItemId | None = None
    status: Status | None = None


class ReferenceItemBody(Lenient):
    """An item of an earlier response, which is kept here."""

    type: Literal["item_reference"]
    id: ItemId


Item = MessageItemBody | CallItemBody | ResultItemBody | ReasoningItemBody
_KINDS: dict[str, type[Lenient]] = {
    "message": MessageItemBody,
    "function_call": CallItemBody,
    "function_call_output": ResultItemBody,
    "reasoning": ReasoningItemBody,
    "item_reference": ReferenceItemBody,
}
_PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def _kind(value: Any) -> str | None:
    if isinstance(value, Lenient):
        return type(value).__name__
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return _KINDS[kind].__name__ if isinstance(kind, str) and kind in _KINDS else None


AnyItem = Annotated[
    Annotated[MessageItemBody, Tag("MessageItemBody")]
    | Annotated[CallItemBody, Tag("CallItemBody")]
    | Annotated[ResultItemBody, Tag("ResultItemBody")]
    | Annotated[ReasoningItemBody, Tag("ReasoningItemBody")]
    | Annotated[ReferenceItemBody, Tag("ReferenceItemBody")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message=f"An item of one of these types is expected: {', '.join(_KINDS)}",
    ),
]


def with_id(item: Item, new_id: Callable[[str], str]) -> Item:
    """The item, with an id of its own; `new_id` makes one from its prefix."""
    return item if item.id is not None else item.model_copy(update={"id": new_id(_PREFIXES[item.type])})


def shown(item: Item) -> dict[str, Any]:
    """The item as it is listed: parts where there was a text, and a status."""
    found = item.model_dump(exclude_none=True)
    if isinstance(item, MessageItemBody) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        found["content"] = [{"type": kind, "text": item.content}]
    if isinstance(item, MessageItemBody) and item.role == "assistant":
        for part in found["content"]:
            if part["type"] == "output_text":
                part["annotations"] = []
    return {**found, "status": item.status or "completed"}


def output_item(value: dict[str, Any]) -> Item:
    """An item that this server has made, to go on from."""
    found: Item = _KINDS[value["type"]].model_validate(value)  # type: ignore[assignment]
    return found


def messages_of(items: Sequence[Item], instructions: str | None) -> tuple[Message, ...]:
    """Items as turns: thinking, words and calls that follow one another are one turn of the assistant.

    Raises NotSupported for anything that is no text, InvalidParameter for a part without its text.
    """
    turns = _Turns()
    if instructions:
        turns.words("system", instructions)
    for index, item in enumerate(items):
        here = f"input[{index}]"
        match item:
            case MessageItemBody(role="assistant"):
                turns.answer(_text(item.content, f"{here}.content"))
            case MessageItemBody():
                turns.words("user" if item.role == "user" else "system", _text(item.content, f"{here}.content"))
            case CallItemBody():
                turns.call(ToolCall(item.call_id, item.name, item.arguments))
            case ResultItemBody():
                turns.result(item.call_id, _text(item.output, f"{here}.output"))
            case ReasoningItemBody():
                turns.thought(_text(item.content or item.summary, f"{here}.content"))
    return turns.finish()


class _Turns:
    """Turns in the making; that of the assistant is open until someone else speaks."""

    def __init__(self) -> None:
        self._found: list[Message] = []
        self._thoughts: list[str] = []
        self._answers: list[str] = []
        self._calls: list[ToolCall] = []

    def words(self, role: Literal["user", "system"], text: str) -> None:
        self._close()
        last = self._found[-1] if self._found else None
        if role == "system" and last is not None and last.role == "system":
            # Instructions and a system's item: chat templates know one turn of the system.
            self._found[-1] = Message("system", f"{last.content}\n\n{text}")
        else:
            self._found.append(Message(role, text))

    def result(self, call_id: str, text: str) -> None:
        self._close()
        self._found.append(Message("tool", text, tool_call_id=call_id))

    def thought(self, text: str) -> None:
        if self._answers or self._calls:
            self._close()
        self._thoughts.append(text)

    def answer(self, text: str) -> None:
        if self._answers or self._calls:
            self._close()
        self._answers.append(text)

    def call(self, call: ToolCall) -> None:
        self._calls.append(call)

    def finish(self) -> tuple[Message, ...]:
        self._close()
        return tuple(self._found)

    def _close(self) -> None:
        if self._thoughts or self._answers or self._calls:
            thought = "\n".join(self._thoughts) or None
            self._found.append(Message("assistant", "".join(self._answers), thought, tuple(self._calls)))
            self._thoughts, self._answers, self._calls = [], [], []


def _text(content: str | list[PartBody], here: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        param = f"{here}[{index}]"
        if part.type not in _KNOWN_PARTS:
            raise NotSupported(
                f"Parts of the type {part.type[:40]} are not read by this server: it takes text only; leave them out.",
                param=param,
            )
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise InvalidParameter(f"{param} has no text; send it, or leave the part out.", param=param)
        texts.append(text)
    return "\n".join(texts)
