"""Shapes of `POST /v1/generate`. pydantic, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from service.api.shapes import (
    MAX_SEED,
    WHOLE,
    LogitBias,
    MaxTokens,
    MinP,
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
    TopP,
    TypicalP,
)


class MessageBody(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateBody(Strict):
    """Text to generate. Exactly one of `prompt` (raw, no template) and `messages` (the model's chat template)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss:Q4_K_M", "prompt": "The word", "max_tokens": 32, "temperature": 0.0}],
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
                {
                    "required": ["messages"],
                    "properties": {
                        "messages": {"type": "array"},
                        "prompt": {"type": "null"},
                        "parse_special": {"const": False},
                    },
                },
            ],
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
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), WHOLE] | None = Field(
        None, description="None or -1 draws a fresh one."
    )
    stop: Stop | Stops = Field(default_factory=list, description="Text that ends the generation and is left out.")
    ignore_eos: bool = Field(False, description="Go on past the model's own end token.")
    logit_bias: LogitBias = Field(default_factory=dict)
    stream: bool = Field(False, description="Answer with server-sent events: token, ..., then one done or error.")
    parse_special: bool = Field(False, description="Let `prompt` name special tokens; messages never can.")

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Send exactly one of prompt and messages.")
        if self.parse_special and self.prompt is None:
            raise ValueError("parse_special is for prompt only; text in messages never names special tokens.")
        return self


class UsageShape(Shape):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingsShape(Shape):
    """Where the time went. Rates are None where nothing was timed."""

    queue_seconds: float
    load_seconds: float
    prompt_seconds: float
    generation_seconds: float
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None


class GenerationShape(Shape):
    """The text, whole."""

    id: str
    object: Literal["generation"] = "generation"
    model: str = Field(description="Canonical name of the variant that answered.")
    created_at: str
    text: str
    finish_reason: Literal["stop", "length"]
    stop: str | None = Field(description="The stop string that ended it, when one did.")
    usage: UsageShape
    timings: TimingsShape
