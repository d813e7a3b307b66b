"""Grammars for tool calls, in the writing that the model's template teaches. Pure; side thread of the worker.

The same limits hold for tools' schemas as for others, each by itself and all together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from service.domain.errors import InvalidGrammar
from service.domain.generation import GrammarKind, Tool, ToolChoice, ToolMode
from service.engine.conversation import parameters
from service.engine.formats import SPECIAL, CallFormat, Tags
from service.engine.grammar_limits import MAX_SCHEMA_BYTES, check_schema

MOST_CALLS = 16  # in one turn, where they are forced
_MAX_TOOLS = 128
_NAME = re.compile(r"[\w.\-/:]{1,128}", re.ASCII)

# The id of a text that is one token of its own kind in the model's vocabulary, which no other tokens can spell.
SpecialToken = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """A Lark grammar of ours, whose schemas have been checked."""

    source: str


def tool_grammar(
    form: CallFormat,
    tools: Sequence[Tool],
    choice: ToolChoice,
    special: SpecialToken,
    options: dict[str, Any],
    *,
    answer: str | None = None,
) -> ToolGrammar:
    """Calls of the tools that may be called, at least one, or JSON by the schema `answer`, and nothing else.

    Where the choice is the model's own, only tools that are `strict` are held to their schemas. `options` are
    llguidance's for JSON. Raises InvalidGrammar, which names `tools`, and InvalidParameter for what is no schema.
    """
    callable_tools = [tool for tool in tools if choice.mode is not ToolMode.NAMED or tool.name == choice.name]
    if not callable_tools:
        _refuse(f"No tool is called {(choice.name or '')[:100]!r}; name one of those that are sent.")
    if len(tools) > _MAX_TOOLS:
        _refuse(f"{len(tools)} tools are too many to force a call of one; at most {_MAX_TOOLS} are taken.")
    if sum(len(tool.parameters.encode("utf-8", "replace")) for tool in callable_tools) > MAX_SCHEMA_BYTES:
        _refuse(f"The tools' schemas have more than {MAX_SCHEMA_BYTES} bytes together; send smaller ones, or fewer.")
    writer = _Writer(special, options)
    writing = form.writing
    several = choice.parallel and form.parallel and choice.mode is not ToolMode.NAMED
    more = f"({writer.text(writing.between)} call){{0,{MOST_CALLS - 1}}}" if several else ""
    names = []
    for number, tool in enumerate(callable_tools):
        if not _NAME.fullmatch(tool.name):
            _refuse(f"The name {tool.name[:100]!r} is none that a tool can have; use letters, digits, `_` and `-`.")
        schema = _checked(tool) if tool.strict or choice.mode is not ToolMode.AUTO else {"type": "object"}
        head = f"{writing.before_name}{tool.name}{writing.before_arguments}"
        inside = writer.json(schema) if form.tags is None else " ".join(_tagged(schema, form.tags, writer))
        names.append(f"call{number}")
        writer.rules.append(f"call{number}: {writer.text(head)} {inside} {writer.text(writing.after_arguments)}")
    calls = f"{writer.text(writing.opening)} call {more} {writer.text(writing.closing)}"
    lines = [
        f"start: {calls}" if answer is None else f"start: calls | {writer.json(check_schema(answer))}\ncalls: {calls}",
        f"call: {' | '.join(names)}",
        *writer.rules,
    ]
    return ToolGrammar("\n".join(lines) + "\n")


class _Writer:
    """Pieces of Lark."""

    def __init__(self, special: SpecialToken, options: dict[str, Any]) -> None:
        self._special = special
        self._options = options
        self.rules: list[str] = []

    def text(self, text: str) -> str:
        """A text as it must be written, special tokens as such."""
        parts = []
        position = 0
        for match in SPECIAL.finditer(text):
            token = self._special(match[0])
            if token is not None:
                parts += [_quoted(text[position : match.start()]), f"<[{token}]>"]
                position = match.end()
        parts.append(_quoted(text[position:]))
        return " ".join(part for part in parts if part) or '""'

    def json(self, schema: dict[str, Any]) -> str:
        """JSON by a schema that was checked."""
        return f"%json {json.dumps({**schema, 'x-guidance': self._options})}"

    def free_text(self, end: str) -> str:
        """Any text up to an end, which is part of it."""
        name = f"text{len(self.rules)}"
        self.rules.append(f"{name}[suffix={_quoted(end)}]: /(?s:.*)/")
        return name


def _tagged(schema: dict[str, Any], tags: Tags, writer: _Writer) -> Iterator[str]:
    """Arguments as tags, in the order of the schema; those that are not required may be left out."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    required = schema.get("required", [])
    shared: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    line = "\n" if tags.break_lines else ""
    for name, property_schema in properties.items():
        if not isinstance(property_schema, dict):
            property_schema = {}
        head = f"{tags.key}{name}{''.join(tags.key_end)}{line}"
        tail = f"{line}{tags.value_end}\n"
        if property_schema.get("type") == "string" and "enum" not in property_schema:
            value = writer.free_text(tail)
        elif strings := _strings(property_schema):
            value = f"({' | '.join(_quoted(text) for text in strings)}) {writer.text(tail)}"
        else:
            value = f"{writer.json({**shared, **property_schema})} {writer.text(tail)}"
        argument = f"{writer.text(head)} {value}"
        yield argument if name in required else f"({argument})?"


def _strings(schema: dict[str, Any]) -> list[str]:
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return values if isinstance(values, list) and all(isinstance(value, str) and value for value in values) else []


def _checked(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, which has no members that nobody has named."""
    try:
        schema = check_schema(json.dumps(parameters(tool)), GrammarKind.JSON_SCHEMA)
    except InvalidGrammar as error:
        error.param = "tools"
        error.message = f"The parameters of the tool {tool.name[:100]!r}: {error.message}"
        raise
    schema.setdefault("type", "object")
    if "properties" in schema and not schema.keys() & {"patternProperties", "anyOf", "oneOf", "allOf", "$ref"}:
        schema.setdefault("additionalProperties", False)
    return schema


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _refuse(message: str) -> NoReturn:
    raise InvalidGrammar(message, param="tools")
