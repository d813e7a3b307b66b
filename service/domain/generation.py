"""A request for text and the events that answer it; the same values cross HTTP, IPC and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `content` is plain text."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. Neutral values switch a stage off.

    `temperature` 0 means greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 mean no cut; penalties look at
    the last `repeat_last_n` tokens (0: none, -1: the whole context). `seed` None draws a fresh one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Text to generate with one variant.

    Exactly one of `prompt` (raw text, no template) and `messages` (rendered by the model's chat template) is set.
    `max_tokens` None means until the context is full. `parse_special` lets the text of a raw prompt name special
    tokens; text inside messages never can.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    parse_special: bool = False


class FinishReason(StrEnum):
    """Why a generation ended well."""

    STOP = "stop"  # the model's own end token, or a stop string
    LENGTH = "length"  # max_tokens reached, or the context is full


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage, by the monotonic clock. `load_seconds` is 0 when the worker was ready."""

    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """Text that is final: whole characters that are no part of a stop string."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The good end; `stop` is the stop string that ended it, when one did."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The bad end: code, message, param and retry hint of a `QuantryError`."""

    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None


GenerationEvent = Token | Finished | Failed
