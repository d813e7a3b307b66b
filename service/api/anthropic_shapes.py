"""Anthropic's request bodies and answers, as far as quantry carries them out. pydantic, and nothing else.

Unknown fields are ignored, as Anthropic's own newer ones would be by an older server; fields that ask for something
that is not done here are read in order to be refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from service.api.shapes import (
    MAX_SEED,
    WHOLE,
    ContextLength,
    JsonSchema,
    Lenient,
    MaxTokens,
    MinP,
    Name,
    RepeatLastN,
    RepeatPenalty,
    Shape,
    Stops,
    TopK,
    TopP,
)

MAX_TOOLS = 256
MAX_MESSAGES = 100_000

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]

_EXAMPLE: dict[str, Any] = {
    "model": "smollm2:Q4_1",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Hello"}],
}


def _block(kind: str, *needed: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, **fields},
        "required": ["type", *needed],
    }


def _turn(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    content = {"anyOf": [_STRING, {"type": "array", "minItems": 1, "items": {"anyOf": list(blocks)}}]}
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": content},
        "required": ["role", "content"],
    }


# For the document: which blocks a turn may have, and which fields a block.
_STRING: dict[str, Any] = {"type": "string"}
_TEXT = _block("text", "text", text=_STRING)
_CALL = _block("tool_use", "id", "name", "input", id=_STRING, name=_STRING, input={"type": "object"})
_RESULT = _block(
    "tool_result",
    "tool_use_id",
    tool_use_id=_STRING,
    content={"anyOf": [_STRING, {"type": "array", "items": _TEXT}, {"type": "null"}]},
    is_error={"type": ["boolean", "null"]},
)
_THINKING = _block("thinking", "thinking", thinking=_STRING)
_TURNS = [
    _turn("user", _TEXT, _RESULT),
    _turn("assistant", _TEXT, _THINKING, _block("redacted_thinking"), _CALL),
    _turn("system", _TEXT),
]


def _as_turns(schema: dict[str, Any]) -> None:
    description = schema["description"]
    schema.clear()
    schema |= {"description": description, "anyOf": _TURNS}


class AnthropicBlockBody(Lenient):
    """One piece of a message. Which of the fields it has follows from its `type`."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[AnthropicBlockBody] | None = None
    is_error: bool | None = None
    source: dict[str, Any] | None = None
    title: str | None = None


class AnthropicTurnBody(Lenient):
    """One turn of a conversation."""

    model_config = ConfigDict(json_schema_extra=_as_turns)

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[AnthropicBlockBody], Field(min_length=1)]


class AnthropicToolBody(Lenient):
    """A tool that the client runs. Tools that Anthropic's servers run have another `type` and are refused."""

    model_config = ConfigDict(json_schema_extra={"required": ["name", "input_schema"]})

    type: Annotated[str | None, WithJsonSchema({"enum": ["custom", None]})] = None
    name: ToolName
    description: str | None = None
    input_schema: Annotated[JsonSchema | None, WithJsonSchema({"type": "object"})] = None
    strict: bool | None = None


class ToolChoiceBody(Lenient):
    """Which tools the model may or must call."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
                {"properties": {"type": {"const": "tool"}, "name": {"type": "string"}}, "required": ["name"]},
            ]
        }
    )

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(Lenient):
    """How much the model thinks before it answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["disabled", "adaptive"]}}},
                {
                    "properties": {"type": {"const": "enabled"}, "budget_tokens": {"type": "integer"}},
                    "required": ["budget_tokens"],
                },
            ]
        }
    )

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormatBody(Lenient):
    """What the text must look like."""

    type: Literal["json_schema"]
    json_schema: Annotated[JsonSchema, Field(alias="schema")]


class OutputConfigBody(Lenient):
    """How the answer is made: with how much effort, and in which form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormatBody | None = None


_SYSTEM = WithJsonSchema({"anyOf": [_STRING, {"type": "array", "items": _TEXT}, {"type": "null"}]})


class CountBody(Lenient):
    """`POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{name: value for name, value in _EXAMPLE.items() if name != "max_tokens"}]}
    )

    model: Name
    messages: Annotated[list[AnthropicTurnBody], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Annotated[str | list[AnthropicBlockBody] | None, _SYSTEM] = None
    tools: Annotated[list[AnthropicToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfigBody | None = None


class MessagesBody(CountBody):
    """`POST /v1/messages`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    max_tokens: MaxTokens
    stop_sequences: Stops | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1, description="0 is greedy.")] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    # quantry's own
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: RepeatLastN | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] | None = None
    context_length: ContextLength | None = None
    cache_prompt: bool | None = None


class AnthropicErrorObject(Shape):
    """What went wrong; `details` have quantry's stable code and the field."""

    type: str
    message: str
    details: dict[str, str | None]


class AnthropicError(Shape):
    """Every answer that is not a success."""

    type: Literal["error"]
    error: AnthropicErrorObject


class CountShape(Shape):
    """How long a prompt is."""

    input_tokens: int


class MessageUsageShape(Shape):
    """Tokens of an answer."""

    input_tokens: int = Field(description="Of the prompt, without those from the cache.")
    cache_creation_input_tokens: int
    cache_read_input_tokens: int = Field(description="Of the prompt, taken from the cache.")
    output_tokens: int
    output_tokens_details: dict[str, int] = Field(description="`thinking_tokens` of them.")


class MessageShape(Shape):
    """Anthropic's answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]] = Field(description="Blocks: `thinking`, `text`, `tool_use`.")
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsageShape
