"""Tools as OpenAI's chat route writes them, today's and the older `functions`: to domain values, and calls back.

Fields and translation; no route. The responses route has words of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from service.api.openai_shapes import NULL, Lenient
from service.api.shapes import JsonSchema
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import Tool, ToolCall, ToolChoice, ToolMode

MAX_TOOLS = 128

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./:-]{1,128}$")]
ToolMoment = Literal["none", "auto", "required"]


def function_is_required(schema: dict[str, Any]) -> None:
    """What the document says of a body that has its `function` unless it is of a type that is refused by name."""
    function = schema["properties"]["function"]
    del function["default"]
    function["anyOf"].remove(NULL)
    schema["required"] = [*schema.get("required", ()), "function"]


class FunctionBody(Lenient):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        """As a domain value."""
        return tool_of(self.name, self.description, self.parameters, strict=self.strict)


class ChatToolBody(Lenient):
    """A tool; only functions are carried out."""

    model_config = ConfigDict(json_schema_extra=function_is_required)

    type: Annotated[str, WithJsonSchema({"const": "function"})]
    function: FunctionBody | None = None


class FunctionNameBody(Lenient):
    """The name of a function, and nothing else."""

    name: ToolName


class NamedChoiceBody(Lenient):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionNameBody


class AllowedBody(Lenient):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoiceBody], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoiceBody(Lenient):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedBody


Tools = Annotated[list[ChatToolBody], Field(max_length=MAX_TOOLS)]
Functions = Annotated[list[FunctionBody], Field(max_length=MAX_TOOLS)]
Choice = ToolMoment | NamedChoiceBody | AllowedChoiceBody


def tool_of(name: str, description: str | None, parameters: dict[str, Any] | None, *, strict: bool | None) -> Tool:
    """A function of any dialect of OpenAI as a domain value; properties of the schema keep their order."""
    schema = json.dumps(parameters or {}, ensure_ascii=False, separators=(",", ":"))
    return Tool(name, description or "", schema, bool(strict))


def tools_of(tools: Sequence[ChatToolBody]) -> tuple[Tool, ...]:
    """Tools in their order; NotSupported for one that is no function."""
    found = []
    for index, tool in enumerate(tools):
        if tool.type != "function":
            raise NotSupported(
                "Only tools of the type function are carried out by this server; leave the others out.",
                param=f"tools[{index}].type",
            )
        if tool.function is None:
            param = f"tools[{index}].function"
            raise InvalidParameter(f"{param} is missing; send the function's name and parameters.", param=param)
        found.append(tool.function.tool)
    return tuple(found)


def chosen(
    tools: tuple[Tool, ...],
    mode: ToolMode,
    names: Sequence[str] | None,
    *,
    parallel: bool,
    param: str = "tool_choice",
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that may be called, and whether one must be. `names` None: all of them.

    Raises InvalidParameter, which names `param`, for a name that no tool has, and where there is none to call.
    """
    if not tools and (mode in (ToolMode.REQUIRED, ToolMode.NAMED) or names is not None):
        raise InvalidParameter(
            f"{param} asks for a call and there are no tools; send them, or leave it out.", param=param
        )
    if names is not None:
        known = {tool.name for tool in tools}
        for name in names:
            if name not in known:
                raise InvalidParameter(f"No tool is called {name!r}; name one of those that are sent.", param=param)
    if mode is ToolMode.NAMED:
        assert names is not None
        return tools, ToolChoice(mode, names[0], parallel)
    if names is not None:
        tools = tuple(tool for tool in tools if tool.name in names)
    return tools, ToolChoice(mode, None, parallel)


def choice_of(tools: tuple[Tool, ...], choice: Choice | None, *, parallel: bool) -> tuple[tuple[Tool, ...], ToolChoice]:
    """`tool_choice` as domain values; see `chosen`."""
    if choice is None or isinstance(choice, str):
        return chosen(tools, ToolMode(choice or "auto"), None, parallel=parallel)
    if isinstance(choice, NamedChoiceBody):
        return chosen(tools, ToolMode.NAMED, [choice.function.name], parallel=parallel)
    allowed = choice.allowed_tools
    return chosen(tools, ToolMode(allowed.mode), [tool.function.name for tool in allowed.tools], parallel=parallel)


def function_choice_of(
    tools: tuple[Tool, ...], choice: Literal["none", "auto"] | FunctionNameBody | None
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The older `function_call` as domain values: at most one call in a turn."""
    if isinstance(choice, FunctionNameBody):
        return chosen(tools, ToolMode.NAMED, [choice.name], parallel=False, param="function_call")
    return chosen(tools, ToolMode(choice or "auto"), None, parallel=False, param="function_call")


def call_shape(call: ToolCall) -> dict[str, Any]:
    """A call as a member of `tool_calls`."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
