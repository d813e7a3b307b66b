"""Shapes of `POST /v1/generate` for conversations with tools and thinking. pydantic, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from service.api.shapes import MAX_TOKENS, WHOLE, JsonSchema, Shape, Strict
from service.domain.errors import InvalidParameter
from service.domain.generation import ToolChoice, ToolMode

MAX_TOOLS = 128

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./:-]{1,128}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]

_NULL: dict[str, Any] = {"type": "null"}


class CallBody(Strict):
    """A call in an earlier turn of the assistant's."""

    id: CallId
    name: ToolName
    arguments: str = Field(description="A JSON object as text.")


class MessageBody(Strict):
    """One turn of a conversation. A turn of a tool brings the result of one call."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "properties": {
                        "role": {"enum": ["system", "user"]},
                        **dict.fromkeys(("reasoning", "tool_calls", "tool_call_id", "name"), _NULL),
                    }
                },
                {"properties": {"role": {"const": "assistant"}, "tool_call_id": _NULL, "name": _NULL}},
                {
                    "properties": {
                        "role": {"const": "tool"},
                        "tool_call_id": {"type": "string"},
                        "reasoning": _NULL,
                        "tool_calls": _NULL,
                    },
                    "required": ["tool_call_id"],
                },
            ]
        }
    )

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str | None = Field(None, description="Of the assistant's turns: the thinking before the text.")
    tool_calls: list[CallBody] | None = None
    tool_call_id: CallId | None = Field(None, description="Of a tool's turns: the call that this answers.")
    name: ToolName | None = Field(None, description="Of a tool's turns: the tool.")

    @model_validator(mode="after")
    def _as_its_role_has_it(self) -> Self:
        if self.role != "assistant" and (self.reasoning is not None or self.tool_calls is not None):
            raise ValueError("reasoning and tool_calls are for turns of the assistant only")
        if self.role != "tool" and (self.tool_call_id is not None or self.name is not None):
            raise ValueError("tool_call_id and name are for turns of a tool only")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a turn of a tool needs its tool_call_id")
        return self


class ToolBody(Strict):
    """A function that the model may call."""

    name: ToolName
    description: str = ""
    parameters: JsonSchema = Field(default_factory=dict, description="JSON schema of its arguments, an object.")
    strict: bool = Field(False, description="Hold the arguments to the schema where the model calls by itself, too.")


class NamedToolBody(Strict):
    """The one tool that must be called."""

    name: ToolName


class ReasoningBody(Strict):
    """How much a model thinks before it answers, where it can."""

    enabled: bool | None = Field(None, description="None: as the model's template has it.")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE] | None = Field(
        None, description="The thinking ends after that many tokens, and the answer begins."
    )
    effort: Literal["low", "medium", "high"] | None = Field(None, description="For templates that read one.")
    split: bool = Field(True, description="Tell the thinking apart from the text; else it stays in it.")


ChoiceOfTools = Literal["none", "auto", "required"] | NamedToolBody


def tool_choice(choice: ChoiceOfTools, names: list[str], *, parallel: bool) -> ToolChoice:
    """As a domain value; InvalidParameter for a call that must come of a tool that is not there."""
    if isinstance(choice, NamedToolBody):
        if choice.name not in names:
            raise InvalidParameter(
                f"No tool is called {choice.name!r}; name one of those that are sent.", param="tool_choice"
            )
        return ToolChoice(ToolMode.NAMED, choice.name, parallel)
    return ToolChoice(ToolMode(choice), None, parallel)


class CallShape(Shape):
    """A call that the model asks for."""

    id: str
    name: str
    arguments: str = Field(description="A JSON object as text; cut short where the text was too long.")
