"""Shapes of `POST /v1/generate`. pydantic, and nothing else."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from service.api.adapter_shapes import AdapterUses
from service.api.generate_tools import MAX_TOOLS, CallShape, ChoiceOfTools, MessageBody, ReasoningBody, ToolBody
from service.api.shapes import (
    MAX_GRAMMAR_BYTES,
    MAX_SCHEMA_BYTES,
    MAX_SEED,
    WHOLE,
    Choices,
    ContextLength,
    DryAllowedLength,
    DryBase,
    DryMultiplier,
    DryPenaltyLastN,
    DrySequenceBreakers,
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
    Shape,
    Stop,
    Stops,
    Strict,
    Temperature,
    TopK,
    TopLogprobs,
    TopP,
    TypicalP,
    XtcProbability,
    XtcThreshold,
    bounded_schema,
    bounded_text,
)

# Fields that exclude one another, as the document says it: one list of all combinations, for tools that make
# requests from a document lose the thread where several such lists are joined by allOf.
_NULL: dict[str, Any] = {"type": "null"}
_NO_TOOLS: dict[str, Any] = {"tools": {"type": "array", "maxItems": 0}, "tool_choice": {"enum": ["none", "auto"]}}
_PROMPT: dict[str, Any] = {
    "required": ["prompt"],
    "properties": {"prompt": {"type": "string"}, "messages": _NULL, "reasoning": _NULL, **_NO_TOOLS},
}
_MESSAGES: dict[str, Any] = {"messages": {"type": "array"}, "prompt": _NULL, "parse_special": {"const": False}}
_CHAT: dict[str, Any] = {"required": ["messages"], "properties": {**_MESSAGES, **_NO_TOOLS}}
_GRAMMARS = ({"format": _NULL}, {"grammar": _NULL})
_COMBINATIONS: list[Any] = [
    *(
        {**form, "properties": {**form["properties"], **grammar}}
        for form, grammar in product((_PROMPT, _CHAT), _GRAMMARS)
    ),
    {
        "required": ["messages", "tools"],
        "properties": {**_MESSAGES, "tools": {"type": "array", "minItems": 1}, "grammar": _NULL},
    },
]


def _checked_format(value: Any) -> Any:
    if isinstance(value, dict):
        return bounded_schema(value)
    if value is None or value == "json":
        return value
    raise ValueError('"json" or a JSON schema (an object) is expected')


class GrammarBody(Strict):
    """What the whole text must look like, in a language for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"kind": {"const": "json_schema"}}},
                {"properties": {"source": {"type": "string", "maxLength": MAX_GRAMMAR_BYTES}}},
            ]
        }
    )

    kind: Literal["json_schema", "regex", "gbnf", "lark"]
    source: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SCHEMA_BYTES)]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        bounded_text(self.source, MAX_SCHEMA_BYTES if self.kind == "json_schema" else MAX_GRAMMAR_BYTES)
        return self


class GenerateBody(Strict):
    """Text to generate. Exactly one of `prompt` (raw, no template) and `messages` (the model's chat template)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss:Q4_K_M", "prompt": "The word", "max_tokens": 32, "temperature": 0.0}],
            "anyOf": _COMBINATIONS,
        }
    )

    model: Name
    prompt: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1)] | None = None
    max_tokens: MaxTokens | None = Field(None, description="None: until the context is full.")
    temperature: Temperature = 0.8
    top_k: TopK = 40
    top_p: TopP = 0.95
    min_p: MinP = 0.05
    typical_p: TypicalP = 1.0
    repeat_penalty: RepeatPenalty = 1.0
    repeat_last_n: RepeatLastN = 64
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    dry_multiplier: DryMultiplier = 0.0
    dry_base: DryBase = 1.75
    dry_allowed_length: DryAllowedLength = 2
    dry_penalty_last_n: DryPenaltyLastN = -1
    dry_sequence_breakers: DrySequenceBreakers | None = Field(
        None, description="None: line end, colon, double quote and asterisk."
    )
    xtc_probability: XtcProbability = 0.0
    xtc_threshold: XtcThreshold = 0.1
    mirostat: Mirostat = 0
    mirostat_tau: MirostatTau = 5.0
    mirostat_eta: MirostatEta = 0.1
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), WHOLE] | None = Field(
        None, description="None or -1 draws a fresh one."
    )
    stop: Stop | Stops = Field(default_factory=list, description="Text that ends the generation and is left out.")
    ignore_eos: bool = Field(False, description="Go on past the model's own end token.")
    logit_bias: LogitBias = Field(default_factory=dict)
    stream: bool = Field(False, description="Answer with server-sent events: token, ..., then one done or error.")
    parse_special: bool = Field(False, description="Let `prompt` name special tokens; messages never can.")
    n: Choices = 1
    logprobs: TopLogprobs | None = Field(
        None, description="Report the drawn tokens with this many of the likeliest at each place."
    )
    format: Annotated[
        Any, AfterValidator(_checked_format), WithJsonSchema({"anyOf": [{"const": "json"}, {"type": "object"}, _NULL]})
    ] = Field(None, description='"json", or the JSON schema that the text must fit.')
    grammar: GrammarBody | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] = Field(
        default_factory=list, description="Functions that the model may call."
    )
    tool_choice: ChoiceOfTools = Field("auto", description="Whether the model must call, and what.")
    parallel_tool_calls: bool = Field(True, description="Allow several calls in one turn.")
    reasoning: ReasoningBody | None = None
    speculate: bool = Field(True, description="Allow drafts of the text to come; they never change it.")
    draft: Name | None = Field(None, description="A smaller variant that writes the drafts.")
    context_length: ContextLength | None = None
    cache_prompt: bool = Field(True, description="Take and leave what other prompts begin with as well.")
    adapters: AdapterUses = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Send exactly one of prompt and messages.")
        if self.parse_special and self.prompt is None:
            raise ValueError("parse_special is for prompt only; text in messages never names special tokens.")
        if self.format is not None and self.grammar is not None:
            raise ValueError("format and grammar both say what the text must look like; send one of them.")
        if self.prompt is not None and (self.tools or self.reasoning is not None):
            raise ValueError("tools and reasoning are for messages only; a prompt has no template that knows them.")
        if self.tools and self.grammar is not None:
            raise ValueError("grammar and tools both say what the text must look like; send one of them.")
        if not self.tools and self.tool_choice not in ("none", "auto"):
            raise ValueError("tool_choice asks for a call and there are no tools; send them, or leave it out.")
        return self

    @property
    def grammar_field(self) -> str:
        """The field that says what the text must look like."""
        return "grammar" if self.format is None else "format"


class UsageShape(Shape):
    """Tokens of one choice, or of all."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = Field(description="Of the prompt, taken from the cache.")
    draft_tokens: int = Field(description="Guessed ahead.")
    accepted_tokens: int = Field(description="Of those, right.")
    reasoning_tokens: int = Field(0, description="Of the completion, thinking.")


class TimingsShape(Shape):
    """Where the time went. Rates are None where nothing was timed."""

    queue_seconds: float
    load_seconds: float
    prompt_seconds: float
    generation_seconds: float
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None


class ChanceShape(Shape):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobShape(ChanceShape):
    """A token that was drawn."""

    top_logprobs: list[ChanceShape]


class TextShape(Shape):
    """A text, whole, and how it ended."""

    text: str
    reasoning: str | None = Field(description="The thinking before it, when there was any.")
    tool_calls: list[CallShape] | None = Field(description="What the model wants called, when it does.")
    logprobs: list[LogprobShape] | None = Field(description="The tokens drawn, when they were asked for.")
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop: str | None = Field(description="The stop string that ended it, when one did.")
    usage: UsageShape
    timings: TimingsShape


class AnswerShape(Shape):
    """What answered, and when."""

    id: str
    object: Literal["generation"] = "generation"
    model: str = Field(description="Canonical name of the variant that answered.")
    created_at: str


class GenerationShape(TextShape, AnswerShape):
    """The text, whole."""


class ChoiceShape(TextShape):
    """One of several texts."""

    index: int


class ChoicesShape(AnswerShape):
    """Several texts (`n` above 1)."""

    choices: list[ChoiceShape]
    usage: UsageShape = Field(description="Of all choices; the prompt counts once.")
    timings: TimingsShape
