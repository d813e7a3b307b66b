"""Messages as OpenAI's chat route takes them: text, calls and results of tools, thinking.

Fields and translation to domain values; no route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, StringConstraints, WithJsonSchema

from service.api.openai_shapes import NULL, TEXT, Lenient, offered
from service.api.openai_tools import ToolName, function_is_required
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import Message, ToolCall

CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _content_as_its_role_has_it(schema: dict[str, Any]) -> None:
    # Beside calls the assistant's text may be left out or null; a result names its call.
    content = {"anyOf": [form for form in schema["properties"]["content"]["anyOf"] if form != NULL]}
    some = {"type": "array", "minItems": 1}
    forms: list[tuple[list[str], dict[str, Any]]] = [
        (["system", "developer", "user", "assistant"], {"content": content}),
        (["assistant"], {"tool_calls": some}),
        (["assistant"], {"function_call": {"type": "object"}}),
        (["tool"], {"content": content, "tool_call_id": TEXT}),
        (["function"], {"content": content, "name": TEXT}),
    ]
    schema["anyOf"] = [
        {"properties": {"role": {"enum": roles}, **needed}, "required": ["role", *needed]} for roles, needed in forms
    ]


class ContentPart(Lenient):
    """One part of a message; only text is carried out."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"const": kind}, kind: TEXT}, "required": ["type", kind]}
                for kind in ("text", "refusal")
            ]
        }
    )

    type: Annotated[str, WithJsonSchema({"enum": ["text", "refusal"]})]
    text: str | None = None
    refusal: str | None = None


class CalledBody(Lenient):
    """What was called, with a JSON object as text."""

    name: ToolName
    arguments: str


class ToolCallBody(Lenient):
    """An earlier call of the assistant's."""

    model_config = ConfigDict(json_schema_extra=function_is_required)

    id: CallId
    type: Annotated[str, WithJsonSchema({"const": "function"})] = "function"
    function: CalledBody | None = None


class ChatMessage(Lenient):
    """One turn of a conversation."""

    model_config = ConfigDict(json_schema_extra=_content_as_its_role_has_it)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: CallId | None = None
    function_call: CalledBody | None = None
    # DeepSeek's and llama-server's name, and vLLM's, for the thinking of an earlier turn.
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: Annotated[dict[str, Any] | None, offered()] = None


def domain_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The turns; text parts are joined by line ends.

    Raises NotSupported for anything that is no text and no call of a function, InvalidParameter for what is missing.
    """
    found: list[Message] = []
    function_ids: dict[str, str] = {}  # of the older calls, which have none, by the function's name
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        if message.audio is not None:
            raise NotSupported("Only text is carried out by this server; leave the audio out.", param=f"{here}.audio")
        found.append(_message(message, here, index, function_ids))
    return tuple(found)


def _message(message: ChatMessage, here: str, index: int, function_ids: dict[str, str]) -> Message:
    role = message.role
    calls = [_call(call, f"{here}.tool_calls[{number}]") for number, call in enumerate(message.tool_calls or ())]
    if role == "assistant":
        if message.function_call is not None:
            call = ToolCall(f"function-{index}", message.function_call.name, message.function_call.arguments)
            function_ids[call.name] = call.id
            calls.append(call)
        content = "" if calls and message.content is None else _text(message, here)
        return Message(role, content, reasoning=message.reasoning_content or message.reasoning, tool_calls=tuple(calls))
    content = _text(message, here)
    if role == "tool":
        if message.tool_call_id is None:
            param = f"{here}.tool_call_id"
            raise InvalidParameter(f"{param} is missing; send the id of the call that this answers.", param=param)
        return Message("tool", content, tool_call_id=message.tool_call_id, name=message.name)
    if role == "function":
        if message.name is None:
            raise InvalidParameter(f"{here}.name is missing; send the function's name.", param=f"{here}.name")
        return Message("tool", content, tool_call_id=function_ids.get(message.name, ""), name=message.name)
    # OpenAI's newer word for the system is one that chat templates do not know.
    return Message("system" if role == "developer" else role, content)


def _call(call: ToolCallBody, here: str) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise NotSupported("Only calls of functions are carried out by this server; leave the others out.", param=here)
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _text(message: ChatMessage, here: str) -> str:
    content = message.content
    if content is None:
        raise InvalidParameter(f"{here}.content is missing; send the text of the message.", param=f"{here}.content")
    if isinstance(content, str):
        return content
    parts = []
    for position, part in enumerate(content):
        param = f"{here}.content[{position}]"
        if part.type not in ("text", "refusal"):
            raise NotSupported(
                f"Parts of the type {part.type[:40]} are not read by this server: it takes text only; leave them out.",
                param=param,
            )
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            param = f"{param}.{part.type}"
            raise InvalidParameter(f"{param} is missing; send the text of the part.", param=param)
        parts.append(text)
    return "\n".join(parts)
