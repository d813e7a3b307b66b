"""Ollama's request bodies, as far as quantry carries them out. pydantic, and nothing else.

As with Ollama unknown fields and options are ignored; known ones with impossible values are refused. A field that
asks for what is not carried out (images, adapters, ...) is read, so that it can be refused by name.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from service.api.shapes import (
    JSON_OBJECT,
    MAX_LOGPROBS,
    MAX_TOKENS,
    WHOLE,
    JsonSchema,
    MinP,
    Mirostat,
    MirostatEta,
    MirostatTau,
    Name,
    Penalty,
    RepeatLastN,
    RepeatPenalty,
    Stop,
    Stops,
    Temperature,
    TopP,
    TypicalP,
    schema_grammar,
)
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import Grammar
from service.domain.names import parse_ref

MAX_TOOLS = 256
MAX_INPUTS = 2048
MAX_DIMENSIONS = 1 << 16
MAX_FILES = 1024
MAX_TEMPLATE_CHARACTERS = 128 * 1024
_MAX_TOKEN_ID = (1 << 31) - 1
_MAX_SECONDS = 100 * 365 * 86_400.0

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"[+-]?(?:{_PART})+")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")


def duration_seconds(value: float | str) -> float:
    """Seconds of a duration: a number of them, or `1h30m` as Go writes it; below 0 is for ever. Raises ValueError."""
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            seconds = float(value)
        elif _DURATION.fullmatch(value):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, value))
            seconds = -seconds if value.startswith("-") else seconds
        else:
            raise ValueError("this is no duration; send seconds, or a text like 5m or 1h30m, and -1 for ever")
    else:
        seconds = float(value)
    return math.inf if seconds < 0 or seconds > _MAX_SECONDS else seconds


def _duration(value: float | str) -> float | str:
    duration_seconds(value)
    return value


KeepAlive = Annotated[
    float | Annotated[str, StringConstraints(max_length=64)],
    AfterValidator(_duration),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^([0-9]{1,6}(ms|s|m|h))+$", "maxLength": 64}],
            "description": "Seconds or a duration like 5m; below 0 for ever, 0 unloads after this request.",
        }
    ),
]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1), WHOLE]
Images = Annotated[
    list[Any] | None,
    WithJsonSchema({"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}], "description": "Refused."}),
]
Think = bool | Literal["low", "medium", "high", "max"]
Template = Annotated[str, StringConstraints(max_length=MAX_TEMPLATE_CHARACTERS)]
Format = Literal["", "json"] | JsonSchema


class Lenient(BaseModel):
    """A request whose unknown fields are ignored, as Ollama ignores them."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class OllamaOptions(Lenient):
    """Ollama's options. Those of loading are ignored, but for `num_ctx`: the server knows its machine."""

    seed: Seed | None = None
    num_predict: Annotated[int, Field(ge=-2, le=MAX_TOKENS), WHOLE] | None = None
    num_ctx: Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE] | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000), WHOLE] | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repeat_last_n: RepeatLastN | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Mirostat | None = None
    mirostat_tau: MirostatTau | None = None
    mirostat_eta: MirostatEta | None = None
    stop: Stop | Stops | None = None


class OllamaCalledFunction(Lenient):
    """Which function a call is of, and with what."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(Lenient):
    """A call that the model has asked for."""

    id: Annotated[str, StringConstraints(max_length=256)] | None = None
    function: OllamaCalledFunction


class OllamaMessage(Lenient):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_name: Annotated[str, StringConstraints(max_length=256)] | None = None
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None


class OllamaFunction(Lenient):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonSchema | None = None


class OllamaTool(Lenient):
    """A tool; all are functions."""

    type: Literal["function"] = "function"
    function: OllamaFunction


class Asking(Lenient):
    """What every request for text may say."""

    model: Name
    stream: bool | None = None
    format: Format | None = None
    keep_alive: KeepAlive | None = None
    options: OllamaOptions | None = None
    think: Think | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in lines; so it does where nothing is said."""
        return self.stream is not False

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each drawn one; None for no report."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def grammar(self) -> Grammar | None:
        """What the text must look like."""
        if not self.format and self.format != {}:
            return None
        return schema_grammar(JSON_OBJECT if self.format == "json" else self.format)

    @property
    def keep_alive_seconds(self) -> float | None:
        """How long the model stays after this request; None leaves it as it is."""
        return None if self.keep_alive is None else duration_seconds(self.keep_alive)


class OllamaGenerateBody(Asking):
    """`POST /api/generate`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "gloss:Q4_K_M", "prompt": "The word", "stream": False}]}
    )

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: Template | None = None
    context: (
        Annotated[list[Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID), WHOLE]], Field(max_length=MAX_TOKENS)] | None
    ) = None
    raw: bool | None = None
    images: Images = None

    def check(self) -> None:
        """Raise NotSupported or InvalidParameter for what these fields ask for together."""
        if self.images:
            raise images_refused("images")
        if self.raw and (self.template or self.system or self.context):
            raise InvalidParameter(
                "raw mode does not support template, system, or context; put them into the prompt.", param="raw"
            )


class OllamaChatBody(Asking):
    """`POST /api/chat`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2:Q4_1", "messages": [{"role": "user", "content": "Hello"}], "stream": False}]
        }
    )

    messages: list[OllamaMessage] | None = None
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS)] | None = None

    def check(self) -> None:
        """Raise NotSupported for what is no text."""
        for index, message in enumerate(self.messages or ()):
            if message.images:
                raise images_refused(f"messages[{index}].images")


def images_refused(param: str) -> NotSupported:
    """The error for images, wherever they come."""
    return NotSupported("Images are not supported by this server yet; send text alone.", param=param)


class OllamaEmbedBody(Lenient):
    """`POST /api/embed`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "gloss:Q4_K_M", "input": ["a horse"]}]})

    model: Name
    input: str | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS), WHOLE] | None = None
    keep_alive: KeepAlive | None = None
    options: OllamaOptions | None = None

    @property
    def inputs(self) -> list[str]:
        """The texts; an empty one alone asks for loading."""
        return [self.input] if isinstance(self.input, str) and self.input else [*(self.input or ())]

    @property
    def keep_alive_seconds(self) -> float | None:
        """How long the model stays after this request; None leaves it as it is."""
        return None if self.keep_alive is None else duration_seconds(self.keep_alive)


class OllamaEmbeddingsBody(Lenient):
    """`POST /api/embeddings`, the older one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "gloss:Q4_K_M", "prompt": "a horse"}]})

    model: Name
    prompt: str | None = None
    keep_alive: KeepAlive | None = None
    options: OllamaOptions | None = None

    @property
    def keep_alive_seconds(self) -> float | None:
        """How long the model stays after this request; None leaves it as it is."""
        return None if self.keep_alive is None else duration_seconds(self.keep_alive)


class OllamaNamedBody(Lenient):
    """A request about one name; `name` is the older word for `model`."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["model"]}, {"required": ["name"]}], "examples": [{"model": "gloss"}]}
    )

    model: Name | None = None
    name: Name | None = None

    @property
    def ref(self) -> str:
        """The name. Raises InvalidParameter when there is none, InvalidName for a `name` that is none."""
        found = self.model or self.name
        if not found:
            raise InvalidParameter("model is required; send the name of one.", param="model")
        if self.name:
            parse_ref(self.name)
        return found


class OllamaShowBody(OllamaNamedBody):
    """`POST /api/show`; `system` and `template` stand in for what is stored."""

    verbose: bool | None = None
    system: str | None = None
    template: Template | None = None


class OllamaTransferBody(OllamaNamedBody):
    """`POST /api/pull` and `POST /api/push`."""

    stream: bool | None = None
    insecure: bool | None = None


class OllamaCopyBody(Lenient):
    """`POST /api/copy`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source": "gloss:Q8_0", "destination": "words"}]})

    source: Name
    destination: Name


class OllamaCreateBody(OllamaNamedBody):
    """`POST /api/create`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "pirate", "from": "smollm2:Q4_1", "system": "Answer as a pirate does."}]
        }
    )

    from_name: Annotated[Name | None, Field(alias="from")] = None
    files: Annotated[dict[str, str], Field(max_length=MAX_FILES)] | None = None
    adapters: Annotated[dict[str, str], Field(max_length=MAX_FILES)] | None = None
    draft_files: dict[str, str] | None = None
    quantize: Annotated[str, StringConstraints(max_length=32)] | None = None
    quantization: Annotated[str, StringConstraints(max_length=32)] | None = None
    template: Template | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: OllamaOptions | None = None
    messages: list[OllamaMessage] | None = None
    stream: bool | None = None

    @property
    def level(self) -> str | None:
        """The level to make, as it was written."""
        return self.quantize or self.quantization or None

    @property
    def licenses(self) -> tuple[str, ...]:
        """The licences' texts."""
        if self.license is None:
            return ()
        return (self.license,) if isinstance(self.license, str) else tuple(self.license)

    def check(self) -> None:
        """Raise NotSupported or InvalidParameter for what is asked for together, and not carried out."""
        if self.draft_files:
            raise NotSupported(
                "A model is not stored with its draft here; import it, and name it as draft in requests.",
                param="draft_files",
            )
        if not self.from_name and not self.files:
            raise InvalidParameter(
                "neither 'from' or 'files' was specified; name a model, or upload a GGUF file as a blob.", param="from"
            )
        if self.from_name and self.files:
            raise InvalidParameter("'from' and 'files' are two sources; send one of them.", param="files")
        for index, message in enumerate(self.messages or ()):
            if message.images:
                raise images_refused(f"messages[{index}].images")
