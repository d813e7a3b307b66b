"""Messages and tools as chat templates take them: plain JSON values, as transformers passes them. Pure.

For templates that take no tools, the tools are explained in a text, and calls and results are put into words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from service.domain.errors import InvalidParameter
from service.domain.generation import Message, Tool, ToolCall, ToolChoice, ToolMode
from service.engine.formats import Format, Thinking, Writing

Turn = dict[str, Any]


def tool_values(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates take them. Raises InvalidParameter for a schema that is no JSON object."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": parameters(tool)},
        }
        for tool in tools
    ]


def parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; that of no arguments where it says nothing."""
    try:
        schema = json.loads(tool.parameters or "{}")
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidParameter(
            f"The parameters of the tool {tool.name[:100]!r} are no JSON schema; send a JSON object.", param="tools"
        )
    return schema or {"type": "object", "properties": {}}


def turns(messages: Sequence[Message], form: Format) -> list[Turn]:
    """Messages for a template that knows calls and results of tools."""
    messages = _with_names(messages)
    if not form.calls.parallel:
        messages = list(_one_call_a_turn(messages))
    return [_turn(message, form) for message in messages]


def plain_turns(messages: Sequence[Message], form: Format) -> list[Turn]:
    """Messages for a template that knows only words: calls as JSON, results as words of the user."""
    found: list[Message] = []
    was_result = False
    for message in _with_names(messages):
        is_result = message.role == "tool"
        if is_result:
            text = f"Result of {message.name or 'the call'}:\n{message.content}"
            if was_result:
                found[-1] = replace(found[-1], content=f"{found[-1].content}\n\n{text}")
            else:
                found.append(Message("user", text))
        elif message.tool_calls:
            calls = "\n".join(
                json.dumps({"name": call.name, "arguments": arguments(call)}, ensure_ascii=False)
                for call in message.tool_calls
            )
            content = f"{message.content}\n{calls}" if message.content else calls
            found.append(replace(message, content=content, tool_calls=()))
        else:
            found.append(message)
        was_result = is_result
    return [_turn(message, form) for message in found]


def explained(
    given: list[Turn], tools: list[dict[str, Any]], choice: ToolChoice, writing: Writing, *, to_user: bool = False
) -> list[Turn]:
    """Turns with a text that explains the tools: in the system's turn, or with `to_user` in the user's first one."""
    text = _explanation(tools, choice, writing)
    role = "user" if to_user else "system"
    if to_user:
        given = _without_system(given)
    for index, turn in enumerate(given):
        if turn["role"] == role and (to_user or index == 0):
            content = f"{text}\n\n{turn['content']}" if to_user else f"{turn['content']}\n\n{text}"
            return [*given[:index], {**turn, "content": content}, *given[index + 1 :]]
    return [{"role": role, "content": text}, *given]


def arguments(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as an object. Raises InvalidParameter for what is none."""
    try:
        value = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidParameter(
            f"The arguments of the call of {call.name[:100]!r} in the messages are no JSON object; send one.",
            param="messages",
        )
    return value


def _turn(message: Message, form: Format) -> Turn:
    thought, content = message.reasoning, message.content
    if message.role == "assistant" and thought is None and form.thinking is not None:
        thought, content = _split_thought(content, form.thinking)
    turn: Turn = {"role": message.role, "content": content}
    # gpt-oss's template refuses a text beside the thinking before a call.
    if (
        thought
        and form.thought_key is not None
        and not (form.thought_key == "thinking" and message.tool_calls and content)
    ):
        turn[form.thought_key] = thought
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": _id(call.id, form),
                "type": "function",
                "function": {"name": call.name, "arguments": arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        turn["tool_call_id"] = _id(message.tool_call_id or "", form)
        if message.name:
            turn["name"] = message.name
    return turn


def _split_thought(content: str, thinking: Thinking) -> tuple[str | None, str]:
    """Thinking that a client has left in the text of an earlier answer, and the answer."""
    stripped = content.lstrip()
    if not stripped.startswith(thinking.start) or thinking.end not in stripped:
        return None, content
    thought, _, answer = stripped[len(thinking.start) :].partition(thinking.end)
    return thought.strip(), answer.lstrip()


def _id(given: str, form: Format) -> str:
    if not form.calls.short_ids or (len(given) == 9 and given.isalnum()):
        return given
    # The same for a call and its result, whoever made it up.
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """Results with the name of the tool that they are of, where the call is there."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        replace(message, name=names.get(message.tool_call_id or ""))
        if message.role == "tool" and not message.name
        else message
        for message in messages
    ]


def _one_call_a_turn(messages: Sequence[Message]) -> Iterator[Message]:
    """Turns with several calls taken apart, each call with its result behind it."""
    results: dict[str, Message] = {}
    split = {call.id for message in messages if len(message.tool_calls) > 1 for call in message.tool_calls}
    for message in messages:
        if message.role == "tool" and message.tool_call_id in split:
            results.setdefault(message.tool_call_id or "", message)
    for message in messages:
        if len(message.tool_calls) > 1:
            for index, call in enumerate(message.tool_calls):
                first = index == 0
                yield replace(
                    message,
                    content=message.content if first else "",
                    reasoning=message.reasoning if first else None,
                    tool_calls=(call,),
                )
                if call.id in results:
                    yield results[call.id]
        elif results.get(message.tool_call_id or "") is not message:
            yield message


def _without_system(given: list[Turn]) -> list[Turn]:
    """The system's words in front of the user's first ones, for templates that know no system."""
    if not given or given[0]["role"] != "system":
        return given
    words, rest = given[0]["content"], given[1:]
    for index, turn in enumerate(rest):
        if turn["role"] == "user":
            return [*rest[:index], {**turn, "content": f"{words}\n\n{turn['content']}"}, *rest[index + 1 :]]
    return [{"role": "user", "content": words}, *rest]


def _explanation(tools: list[dict[str, Any]], choice: ToolChoice, writing: Writing) -> str:
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    if choice.mode is ToolMode.NAMED:
        order = f"Call the function {choice.name} now"
    elif choice.mode is ToolMode.REQUIRED:
        order = "Call the functions that you need now"
    else:
        order = "When a function is of use, call it instead of answering"
    call = f"{writing.before_name}<function>{writing.before_arguments}{{<arguments>}}{writing.after_arguments}"
    how = f"{writing.opening}{call}{writing.closing}"
    several = "; several calls come one after another" if choice.parallel else ""
    return (
        f"You can call these functions, each given with the JSON schema of its arguments:\n{lines}\n\n"
        f"{order}: write nothing but {how}, with JSON for the arguments{several}. You will be given the result."
    )
