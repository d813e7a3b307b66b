"""A request for text and the events that answer it; the same values cross HTTP, IPC and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `content` is plain text.

    Turns of the assistant may carry `reasoning` and `tool_calls`; a turn of a tool answers the call `tool_call_id`, and
    names the tool in `name` where the dialect does.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, as text.

    `strict` holds the arguments to the schema, also where the model chose to call by itself.
    """

    name: str
    description: str = ""
    parameters: str = "{}"
    strict: bool = False


class ToolMode(StrEnum):
    """Whether the model must call."""

    NONE = "none"  # the tools are not even shown
    AUTO = "auto"
    REQUIRED = "required"  # at least one call, and nothing else
    NAMED = "named"  # one call of `ToolChoice.name`


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the model may or must call. Held to by constraint, not by asking."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None
    parallel: bool = True  # more than one call in a turn


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How much a model thinks before it answers. `enabled` None leaves it to the model's template.

    `max_tokens` ends the thinking after that many tokens and lets the answer begin; `effort` is a word for templates
    that read one ("low", "medium", "high"). `split` False leaves the thinking in the text.
    """

    enabled: bool | None = None
    max_tokens: int | None = None
    effort: str | None = None
    split: bool = True


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. Neutral values switch a stage off.

    `temperature` 0 means greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 mean no cut; penalties look at
    the last `repeat_last_n` tokens (0: none, -1: the whole context). `dry_multiplier` 0 switches off DRY, which makes
    a repetition of n tokens cost multiplier * base ** (n - allowed_length); `xtc_probability` 0 switches off XTC, which
    now and then drops every token above `xtc_threshold` but the last of them. `mirostat` 1 or 2 replaces top-k, top-p,
    min-p, typical and XTC by a control loop towards a surprise of `mirostat_tau` bits. `seed` None draws a fresh one.
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
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


class GrammarKind(StrEnum):
    """Languages in which a request can say what its text must look like."""

    JSON_SCHEMA = "json_schema"  # `{}` is any JSON value
    REGEX = "regex"
    GBNF = "gbnf"  # llama.cpp's grammars
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text must look like, whole; `source` is JSON for a schema, else the grammar's own text."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """A LoRA adapter of the worker, by name, and how much of it is added to the weights."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Text to generate with one variant.

    At most one of `prompt` (raw text, no template) and `messages` (rendered by the model's chat template) is set;
    `prompt_tokens` come before it, or are the whole prompt. `continues`: the last of the messages, the assistant's, is
    the beginning of the answer. `template` is a chat template (Jinja) to be used in the place of the model's own.
    `max_tokens` None means until the context is full. `parse_special` lets the text of a raw prompt name special
    tokens; text inside messages never can. `choices` texts are drawn from the one prompt; those with a seed use seed,
    seed + 1, ... `logprobs` None reports no log-probabilities, a number reports that many alternatives beside the
    drawn token. `speculate` allows drafts (they never change a text), `draft` names the smaller variant that may
    write them. `context_length` asks for at least that many tokens of context, None for the server's. `cache_prompt`
    allows reading and leaving shared prefixes; only requests of the same `cache_salt` share. `client` is whose turn
    it is when requests wait.
    """

    prompt: str | None = None
    prompt_tokens: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    continues: bool = False
    template: str | None = None
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    parse_special: bool = False
    choices: int = 1
    logprobs: int | None = None
    grammar: Grammar | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    reasoning: Reasoning = Reasoning()
    adapters: tuple[AdapterUse, ...] = ()
    speculate: bool = True
    draft: str | None = None
    context_length: int | None = None
    cache_prompt: bool = True
    cache_salt: str = ""
    client: str = ""


class FinishReason(StrEnum):
    """Why a generation ended well."""

    TOOL_CALLS = "tool_calls"  # the model wants tools called
    STOP = "stop"  # the model's own end token, a stop string, or the end of the grammar
    LENGTH = "length"  # max_tokens reached, or the context is full


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice. `cached_tokens` of the prompt were taken from the cache; of `draft_tokens` that were
    guessed ahead, `accepted_tokens` were right."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0  # of completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage, by the monotonic clock. `load_seconds` is 0 when the worker was ready."""

    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token's bytes and the natural logarithm of its probability before any sampling stage."""

    token: bytes
    logprob: float
    id: int = -1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token and its likeliest alternatives, likeliest first."""

    token: bytes
    logprob: float
    top: tuple[TokenChance, ...] = ()
    id: int = -1


@dataclass(frozen=True, slots=True)
class Token:
    """Text of one choice that is final: whole characters that are no part of a stop string.

    `logprobs` has an entry for each token drawn since the last event, whose text may still be held back.
    """

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of one choice's thinking, which comes before its answer."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of call number `index` of one choice. The first of a call has its id and name; `arguments` is the next piece
    of the JSON text.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The good end of one choice; `stop` is the stop string that ended it, when one did."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The bad end of a request, all its choices included: code, message, param and retry hint of a `QuantryError`."""

    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None


GenerationEvent = Token | Thought | ToolCallDelta | Finished | Failed


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or their token ids, to turn into vectors.

    `dimensions` keeps that many of the first numbers of each, then `normalize` scales it to length 1. A text longer
    than the context is cut with `truncate`, else refused. Token ids are taken as they are: none is added. With `query`
    the inputs are documents to be ranked by a reranker, and the one number of each is how well it fits.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    normalize: bool = True
    dimensions: int | None = None
    truncate: bool = True
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer: one vector for each text (float32, little-endian), and the tokens read."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int
