"""Tasks: prompts with expected answers, as JSON lines. Values and pure functions.

Each line is an object with `expected` and either `prompt` or `messages`; an answer counts when it is the expected text,
but for white space around it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, NoReturn

from service.domain.errors import InvalidParameter
from service.domain.generation import Message

MAX_LINES = 100_000
_ROLES: dict[object, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
_KEYS = frozenset({"prompt", "messages", "expected"})


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One question. Exactly one of `prompt` and `messages` is set."""

    expected: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()


def parse_task(data: bytes) -> tuple[TaskItem, ...]:
    """The items of a task file; empty lines are left out. Raises InvalidParameter with the number of a bad line."""
    items: list[TaskItem] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(items) == MAX_LINES:
            raise InvalidParameter(f"A task may have {MAX_LINES} lines; send a shorter one.", param="task")
        items.append(_parse_line(number, line))
    if not items:
        raise InvalidParameter('The task is empty; send lines like {"prompt": "...", "expected": "..."}.', param="task")
    return tuple(items)


def is_right(answer: str, expected: str) -> bool:
    """Exactly the expected text, but for white space around it."""
    return answer.strip() == expected.strip()


def may_become_right(beginning: str, expected: str) -> bool:
    """Whether an answer that begins so can still be right: once it cannot, nobody needs its end."""
    begun, wanted = beginning.lstrip(), expected.strip()
    return wanted.startswith(begun) or begun.rstrip() == wanted


def _parse_line(number: int, line: bytes) -> TaskItem:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        _refuse(number, "is no JSON")
    if not isinstance(value, dict) or not _KEYS.issuperset(value):
        _refuse(number, "is no object of `expected` and `prompt` or `messages`")
    expected, prompt, messages = value.get("expected"), value.get("prompt"), value.get("messages")
    if not isinstance(expected, str) or not expected.strip():
        _refuse(number, "has no text in `expected`")
    if (prompt is None) == (messages is None):
        _refuse(number, "needs one of `prompt` and `messages`")
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt:
            _refuse(number, "has no text in `prompt`")
        return TaskItem(expected, prompt=prompt)
    if not isinstance(messages, list) or not messages:
        _refuse(number, "has no list of messages in `messages`")
    return TaskItem(expected, messages=tuple(_parse_message(number, message) for message in messages))


def _parse_message(number: int, value: object) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        _refuse(number, "has a message that is no object of `role` and `content`")
    role, content = value["role"], value["content"]
    if not isinstance(role, str) or role not in _ROLES or not isinstance(content, str):
        _refuse(number, "has a message whose role is none of system, user and assistant, or whose content is no text")
    return Message(_ROLES[role], content)


def _refuse(number: int, problem: str) -> NoReturn:
    raise InvalidParameter(f"Line {number} of the task {problem}; mend it and send the task again.", param="task")
