"""What OpenAI's request bodies share, and the body of `POST /v1/completions`. pydantic, and nothing else.

Fields that OpenAI knows and quantry does not are ignored where ignoring them changes nothing that was asked for,
and refused with `not_supported` where it would: such a field is read, to be refused by name, and the document offers
only the values that ask for nothing. Known fields with impossible values are refused. Fields of quantry's own
(top_k, min_p, ...) and of llama-server's (grammar, json_schema, ...) may be sent along, as clients do through
`extra_body`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.api.adapter_shapes import AdapterUses, adapter_uses
from service.api.sampling import sampling_params
from service.api.shapes import (
    JSON_OBJECT,
    WHOLE,
    Choices,
    ContextLength,
    DryAllowedLength,
    DryBase,
    DryMultiplier,
    DryPenaltyLastN,
    DrySequenceBreakers,
    GrammarText,
    JsonSchema,
    LogitBias,
    MaxTokens,
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
    TopK,
    TopP,
    TypicalP,
    XtcProbability,
    XtcThreshold,
    schema_grammar,
)
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import GenerationRequest, Grammar, GrammarKind, SamplingParams

T = TypeVar("T")

# OpenAI takes any 64-bit integer; the sampler takes 32 bits of it.
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1), WHOLE]
_SEED_MASK = (1 << 32) - 1

# OpenAI's own defaults, not quantry's: a client of that dialect that leaves a field out means these.
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 1.0
DEFAULT_COMPLETION_TOKENS = 16


NULL: dict[str, Any] = {"type": "null"}
NO_ITEMS: dict[str, Any] = {"type": "array", "maxItems": 0}
TEXT: dict[str, Any] = {"type": "string"}


def offered(*schemas: dict[str, Any]) -> WithJsonSchema:
    """What the document says of a field that is read in order to be refused: `schemas` and null ask for nothing."""
    return WithJsonSchema({"anyOf": [*schemas, NULL], "description": "Known; other values are not carried out."})


# Fields that go together, as the document says it: one list of all combinations. Tools that make requests from a
# document lose the thread where several such lists are joined by allOf.
STREAM: list[Any] = [
    {"properties": {"stream_options": NULL}},
    {"properties": {"stream": {"const": True}}, "required": ["stream"]},
]
NO_GRAMMAR: dict[str, Any] = {
    "grammar": NULL,
    "json_schema": NULL,
    "response_format": {"anyOf": [NULL, {"properties": {"type": {"const": "text"}}}]},
}
ONE_GRAMMAR = tuple({other: none for other, none in NO_GRAMMAR.items() if other != field} for field in NO_GRAMMAR)
_COMPLETION: list[Any] = [
    {**stream, "properties": {**stream["properties"], **grammar}} for stream, grammar in product(STREAM, ONE_GRAMMAR)
]


class Lenient(BaseModel):
    """A request whose unknown fields are ignored, as OpenAI's clients expect of older servers."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Lenient):
    """What a stream carries beside the text."""

    include_usage: bool | None = None


class NamedSchema(Lenient):
    """A JSON schema as OpenAI wraps it. It is always kept to, whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    json_schema: Annotated[JsonSchema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Lenient):
    """What the text must look like: plain text, any JSON object, or JSON that fits a schema."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}}},
                {
                    "properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "object"}},
                    "required": ["json_schema"],
                },
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Sampled(Lenient):
    """Fields of all routes that generate: the variant, and how to draw from it."""

    model: Name
    temperature: Annotated[Temperature, Field(le=2)] | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    # llama-server's
    cache_prompt: bool | None = None
    # quantry's own
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: RepeatLastN | None = None
    ignore_eos: bool | None = None
    dry_multiplier: DryMultiplier | None = None
    dry_base: DryBase | None = None
    dry_allowed_length: DryAllowedLength | None = None
    dry_penalty_last_n: DryPenaltyLastN | None = None
    dry_sequence_breakers: DrySequenceBreakers | None = None
    xtc_probability: XtcProbability | None = None
    xtc_threshold: XtcThreshold | None = None
    mirostat: Mirostat | None = None
    mirostat_tau: MirostatTau | None = None
    mirostat_eta: MirostatEta | None = None
    speculate: bool | None = None
    draft: Name | None = None
    context_length: ContextLength | None = None
    adapters: AdapterUses | None = None

    @property
    def sampling(self) -> SamplingParams:
        """How to sample: what was sent, OpenAI's defaults for its own fields, quantry's for the rest."""
        return sampling_params(
            self,
            SamplingParams(temperature=DEFAULT_TEMPERATURE, top_p=DEFAULT_TOP_P),
            seed=None if self.seed is None else self.seed & _SEED_MASK,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def drawn(self, asked: GenerationRequest) -> GenerationRequest:
        """What is `asked`, completed by these fields."""
        return replace(
            asked,
            sampling=self.sampling,
            stop=self.stops,
            ignore_eos=bool(self.ignore_eos),
            speculate=self.speculate is not False,
            draft=self.draft,
            context_length=self.context_length,
            cache_prompt=self.cache_prompt is not False,
            adapters=adapter_uses(self.adapters),
        )


class Common(Sampled):
    """Fields of the chat route and of the one for raw text."""

    max_tokens: MaxTokens | None = None
    n: Choices | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # llama-server's
    grammar: Annotated[GrammarText, Field(description="llama.cpp's GBNF.")] | None = None
    json_schema: JsonSchema | None = None

    @property
    def constraint(self) -> Grammar | None:
        """What the text must look like, said in one of three ways; see `check_common`."""
        if self.grammar is not None:
            return Grammar(GrammarKind.GBNF, self.grammar)
        if self.json_schema is not None:
            return schema_grammar(self.json_schema)
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return schema_grammar(wanted.json_schema.json_schema if wanted.json_schema else JSON_OBJECT)

    @property
    def grammar_field(self) -> str:
        """The field that says what the text must look like."""
        if self.grammar is not None:
            return "grammar"
        return "response_format" if self.json_schema is None else "json_schema"

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_common(self) -> None:
        """Raise NotSupported or InvalidParameter for what these fields ask for together."""
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options is for streams only; set stream to true.", param="stream_options")
        wanted = self.response_format
        if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
            param = "response_format.json_schema"
            raise InvalidParameter(f"{param} is missing; send the schema, or the type json_object.", param=param)
        asked = {
            "grammar": self.grammar is not None,
            "json_schema": self.json_schema is not None,
            "response_format": wanted is not None and wanted.type != "text",
        }
        sent = [field for field, given in asked.items() if given]
        if len(sent) > 1:
            raise InvalidParameter(
                f"{' and '.join(sent)} both say what the text must look like; send one of them.", param=sent[0]
            )


# A list is given up at its first wrong item: a problem for each of a million would hold up the event loop.
_Several = Annotated[list[T], Field(fail_fast=True)]
_TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1), WHOLE]
_IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1},
    "minItems": 1,
}
_ONE: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": 1}


class CompletionBody(Common):
    """`POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss:Q4_K_M", "prompt": "The word", "max_tokens": 32}],
            "anyOf": _COMPLETION,
        }
    )

    # OpenAI's list also takes several prompts.
    prompt: Annotated[
        str | _Several[str] | _Several[_TokenId] | _Several[_Several[_TokenId]],
        WithJsonSchema({"anyOf": [TEXT, _IDS, *({**_ONE, "items": items} for items in (TEXT, _IDS))]}),
    ]
    suffix: Annotated[str | None, offered({"const": ""})] = None
    echo: Annotated[bool | None, offered({"const": False})] = None
    best_of: Annotated[Annotated[int, Field(ge=1, le=128), WHOLE] | None, offered({"type": "integer", "enum": [1]})] = (
        None
    )
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each drawn one; None for no report."""
        return self.logprobs

    def request(self) -> GenerationRequest:
        """What is asked for. Raises NotSupported or InvalidParameter for what is not carried out or makes no sense."""
        self.check_common()
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise NotSupported(
                "Texts are not made to be thrown away here; send the number as n and choose.", param="best_of"
            )
        refuse({"suffix": bool(self.suffix), "echo": bool(self.echo)})
        prompt = self._one_prompt()
        return self.drawn(
            GenerationRequest(
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_tokens=() if isinstance(prompt, str) else prompt,
                max_tokens=self.max_tokens if self.max_tokens is not None else DEFAULT_COMPLETION_TOKENS,
                choices=self.n or 1,
                logprobs=self.alternatives,
                grammar=self.constraint,
            )
        )

    def _one_prompt(self) -> str | tuple[int, ...]:
        """Text, or token ids; NotSupported for several prompts."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        if prompt and isinstance(prompt[0], int):
            return tuple(prompt)
        raise NotSupported("There must be one prompt; send several requests for several prompts.", param="prompt")


def given(value: T | None, default: T) -> T:
    """The value, or the default where none was sent."""
    return default if value is None else value


def refuse(asked: dict[str, bool]) -> None:
    """Raise NotSupported for the first field that is asked for."""
    for field, wanted in asked.items():
        if wanted:
            raise NotSupported(f"{field} is not carried out by this server yet; leave it out.", param=field)
