"""OpenAI's request bodies, as far as quantry carries them out. pydantic, and nothing else.

Fields that OpenAI knows and quantry does not are ignored where ignoring them changes nothing that was asked for,
and refused with `not_supported` where it would: such a field is read, to be refused by name, and the document offers
only the values that ask for nothing. Known fields with impossible values are refused. Fields of quantry's own
(top_k, min_p, ...) may be sent along, as clients do through `extra_body`.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.api.shapes import (
    WHOLE,
    LogitBias,
    MaxTokens,
    MinP,
    Name,
    Penalty,
    RepeatLastN,
    RepeatPenalty,
    Stop,
    Stops,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import Message, SamplingParams

# OpenAI takes any 64-bit integer; the sampler takes 32 bits of it.
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1), WHOLE]
_SEED_MASK = (1 << 32) - 1

# OpenAI's own defaults, not quantry's: a client of that dialect that leaves a field out means these.
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 1.0
DEFAULT_COMPLETION_TOKENS = 16


_NULL: dict[str, Any] = {"type": "null"}
_NO_ITEMS: dict[str, Any] = {"type": "array", "maxItems": 0}
_TEXT: dict[str, Any] = {"type": "string"}


def _offered(*schemas: dict[str, Any]) -> WithJsonSchema:
    """What the document says of a field that is read in order to be refused: `schemas` and null ask for nothing."""
    return WithJsonSchema({"anyOf": [*schemas, _NULL], "description": "Known; other values are not carried out."})


def _content_is_required(schema: dict[str, Any]) -> None:
    # Clients leave it out, or null, beside tool calls, which are refused by name; nobody else may.
    content = schema["properties"]["content"]
    del content["default"]
    content["anyOf"].remove(_NULL)
    schema["required"] = ["role", "content"]


# Fields that go together, as the document says it: one list of all combinations. Tools that make requests from a
# document lose the thread where several such lists are joined by allOf.
_STREAM: list[Any] = [
    {"properties": {"stream_options": _NULL}},
    {"properties": {"stream": {"const": True}}, "required": ["stream"]},
]
_TOKEN_LIMIT = ({"max_tokens": _NULL}, {"max_completion_tokens": _NULL})
_CHAT: list[Any] = [
    {**stream, "properties": {**stream["properties"], **limit}} for stream, limit in product(_STREAM, _TOKEN_LIMIT)
]


class Lenient(BaseModel):
    """A request whose unknown fields are ignored, as OpenAI's clients expect of older servers."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Lenient):
    """What a stream carries beside the text."""

    include_usage: bool | None = None


class ContentPart(Lenient):
    """One part of a message; only text is carried out."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "text"]})

    type: Annotated[str, WithJsonSchema({"const": "text"})]
    text: Annotated[str | None, WithJsonSchema(_TEXT)] = None


class ChatMessage(Lenient):
    """One turn of a conversation."""

    model_config = ConfigDict(json_schema_extra=_content_is_required)

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"],
        WithJsonSchema({"enum": ["system", "developer", "user", "assistant"]}),
    ]
    content: str | list[ContentPart] | None = None
    tool_calls: Annotated[list[Any] | None, _offered(_NO_ITEMS)] = None
    function_call: Annotated[dict[str, Any] | None, _offered({"type": "object", "maxProperties": 0})] = None
    audio: Annotated[dict[str, Any] | None, _offered()] = None


class ResponseFormat(Lenient):
    """How the text is to be shaped; only plain text is carried out."""

    type: Annotated[Literal["text", "json_object", "json_schema"], WithJsonSchema({"const": "text"})]


class Common(Lenient):
    """Fields of both routes."""

    model: Name
    max_tokens: MaxTokens | None = None
    temperature: Annotated[Temperature, Field(le=2)] | None = None
    top_p: TopP | None = None
    n: Annotated[Annotated[int, Field(ge=1, le=128), WHOLE] | None, _offered({"type": "integer", "enum": [1]})] = None
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    # quantry's own
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: RepeatLastN | None = None
    ignore_eos: bool | None = None

    @property
    def sampling(self) -> SamplingParams:
        """How to sample: what was sent, OpenAI's defaults for its own fields, quantry's for the rest."""
        ours = SamplingParams()
        return SamplingParams(
            temperature=_given(self.temperature, DEFAULT_TEMPERATURE),
            top_p=_given(self.top_p, DEFAULT_TOP_P),
            top_k=self.top_k if self.top_k is not None else ours.top_k,
            min_p=_given(self.min_p, ours.min_p),
            typical_p=_given(self.typical_p, ours.typical_p),
            repeat_penalty=_given(self.repeat_penalty, ours.repeat_penalty),
            repeat_last_n=self.repeat_last_n if self.repeat_last_n is not None else ours.repeat_last_n,
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            seed=None if self.seed is None else self.seed & _SEED_MASK,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_common(self) -> None:
        """Raise NotSupported or InvalidParameter for what these fields ask for together."""
        if self.n is not None and self.n > 1:
            raise NotSupported("Only one choice is made for a request; send n=1, and more requests.", param="n")
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options is for streams only; set stream to true.", param="stream_options")


class ChatBody(Common):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2:Q4_1", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
            ],
            "anyOf": _CHAT,
        }
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: Annotated[bool | None, _offered({"const": False})] = None
    top_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20), WHOLE] | None, _offered({"type": "integer", "enum": [0]})
    ] = None
    tools: Annotated[list[Any] | None, _offered(_NO_ITEMS)] = None
    tool_choice: Annotated[str | dict[str, Any] | None, _offered({"enum": ["none", "auto"]})] = None
    functions: Annotated[list[Any] | None, _offered(_NO_ITEMS)] = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[str] | None, _offered({"type": "array", "items": {"const": "text"}})] = None
    audio: Annotated[dict[str, Any] | None, _offered()] = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None until the context is full."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        """Raise NotSupported or InvalidParameter for what this request asks for and does not get."""
        self.check_common()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidParameter(
                "max_tokens and max_completion_tokens mean the same; send one of them.", param="max_tokens"
            )
        asked = {
            "tools": bool(self.tools),
            "tool_choice": self.tool_choice not in (None, "none", "auto"),
            "functions": bool(self.functions),
            "logprobs": bool(self.logprobs),
            "top_logprobs": bool(self.top_logprobs),
            "response_format": self.response_format is not None and self.response_format.type != "text",
            "modalities": any(kind != "text" for kind in self.modalities or ()),
            "audio": self.audio is not None,
        }
        _refuse(asked)

    def domain_messages(self) -> tuple[Message, ...]:
        """The turns, text parts joined by line ends; NotSupported for anything that is no text."""
        return tuple(_message(index, message) for index, message in enumerate(self.messages))


class CompletionBody(Common):
    """`POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss:Q4_K_M", "prompt": "The word", "max_tokens": 32}],
            "anyOf": _STREAM,
        }
    )

    # OpenAI's list also takes several prompts, and tokens.
    prompt: Annotated[
        str | list[str] | list[int] | list[list[int]],
        WithJsonSchema(
            {
                "anyOf": [
                    _TEXT,
                    {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1},
                ]
            }
        ),
    ]
    suffix: Annotated[str | None, _offered({"const": ""})] = None
    echo: Annotated[bool | None, _offered({"const": False})] = None
    best_of: Annotated[
        Annotated[int, Field(ge=1, le=128), WHOLE] | None, _offered({"type": "integer", "enum": [1]})
    ] = None
    logprobs: Annotated[Annotated[int, Field(ge=0, le=5), WHOLE] | None, _offered()] = None

    def check(self) -> None:
        """Raise NotSupported or InvalidParameter for what this request asks for and does not get."""
        self.check_common()
        asked = {
            "suffix": bool(self.suffix),
            "echo": bool(self.echo),
            "best_of": self.best_of is not None and self.best_of > 1,
            "logprobs": self.logprobs is not None,
        }
        _refuse(asked)

    @property
    def text(self) -> str:
        """The prompt; NotSupported for several, or for tokens."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1 and isinstance(self.prompt[0], str):
            return self.prompt[0]
        raise NotSupported("The prompt must be one string; send several requests for several prompts.", param="prompt")


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _refuse(asked: dict[str, bool]) -> None:
    for field, wanted in asked.items():
        if wanted:
            raise NotSupported(f"{field} is not carried out by this server yet; leave it out.", param=field)


def _message(index: int, message: ChatMessage) -> Message:
    here = f"messages[{index}]"
    if message.role in ("tool", "function") or message.tool_calls or message.function_call:
        raise NotSupported("Tool calls are not carried out by this server yet; leave them out.", param=here)
    if message.audio is not None:
        raise NotSupported("Only text is carried out by this server; leave the audio out.", param=f"{here}.audio")
    content = message.content
    if content is None:
        raise InvalidParameter(f"{here}.content is missing; send the text of the message.", param=f"{here}.content")
    if not isinstance(content, str):
        parts = []
        for position, part in enumerate(content):
            param = f"{here}.content[{position}]"
            if part.type != "text":
                raise NotSupported("Only text parts are carried out by this server; leave the others out.", param=param)
            if part.text is None:
                raise InvalidParameter(f"{param}.text is missing; send the text of the part.", param=f"{param}.text")
            parts.append(part.text)
        content = "\n".join(parts)
    if message.role == "developer":
        # OpenAI's newer word for the same thing; chat templates know only the older one.
        return Message("system", content)
    if message.role in ("system", "user", "assistant"):
        return Message(message.role, content)
    raise NotSupported(f"The role {message.role} is not carried out by this server.", param=f"{here}.role")
