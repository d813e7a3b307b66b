"""What the shapes of all routes are made of: names, sampling fields with their limits, lists, errors. pydantic only.

Requests refuse unknown fields, numbers in strings, booleans as numbers, NaN, and anything out of its range: every
number that reaches llama.cpp has passed one of these limits.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from service.domain.generation import Grammar, GrammarKind
from service.domain.quants import ALIASES, QUANTIZATIONS

MAX_TOKENS = 1 << 20
MAX_SEED = (1 << 32) - 1
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_CHOICES = 16
MAX_LOGPROBS = 20
# Each costs one walk through the model's vocabulary; llama.cpp looks at no more than 40 bytes of one.
MAX_BREAKERS = 8
MAX_BREAKER_LENGTH = 40
# Longer grammars and schemas keep a worker busy for longer than they can be meant to.
MAX_GRAMMAR_BYTES = 16 << 10
MAX_SCHEMA_BYTES = 64 << 10

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
# For the document only: `names.parse_ref` checks names, and says which part is wrong.
_MODEL = r"(([A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/)?[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?" + _WORD
NAME_PATTERN = f"^{_MODEL}(:{_WORD})?$"
MODEL_PATTERN = f"^{_MODEL}$"  # without a tag
TAGS_PATTERN = f"^{_WORD}(,{_WORD})*$"
DIGEST_PATTERN = "^sha256:[0-9a-f]{64}$"
PATH_PATTERN = r"^/[^\x00]*$"

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=600),
    Field(
        description="`[host/][namespace/]model[:tag]`; a tag is a level, a flavour and a level, or a free word.",
        json_schema_extra={"pattern": NAME_PATTERN},
    ),
]
ServerPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=PATH_PATTERN)]
UploadDigest = Annotated[str, Field(json_schema_extra={"pattern": DIGEST_PATTERN})]
# The files of a checkpoint by name, and the digests that they were put under.
UploadedFiles = dict[Annotated[str, StringConstraints(min_length=1, max_length=255)], UploadDigest]
Level = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32),
    Field(
        description="A quantization level, in any case, or an alias.",
        json_schema_extra={"enum": [*QUANTIZATIONS, *ALIASES]},
    ),
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON knows one kind of number, and JSON Schema calls 40.0 an integer; 40.5 is none, and true never is.
WHOLE = BeforeValidator(_whole)

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
# JSON has no integer keys: a token id is written as a string of digits.
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,8}$")]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Field(ge=-100, le=100)]],
    Field(
        max_length=MAX_BIASES,
        description="Added to the logits, by token id; -100 bans a token.",
        json_schema_extra={"additionalProperties": False},
    ),
]
Temperature = Annotated[float, Field(ge=0, le=5, description="0 is greedy.")]
TopK = Annotated[int, Field(ge=0, le=1_000_000, description="Keep this many likeliest tokens; 0: all."), WHOLE]
TopP = Annotated[float, Field(ge=0, le=1, description="Keep the likeliest tokens up to this probability; 1: all.")]
MinP = Annotated[float, Field(ge=0, le=1, description="Drop tokens below this share of the likeliest; 0: none.")]
TypicalP = Annotated[float, Field(ge=0, le=1, description="Locally typical sampling; 1: off.")]
RepeatPenalty = Annotated[float, Field(gt=0, le=10, description="Divides the logits of recent tokens; 1: off.")]
RepeatLastN = Annotated[
    int, Field(ge=-1, le=MAX_TOKENS, description="Tokens that count as recent; -1: the context."), WHOLE
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
DryMultiplier = Annotated[float, Field(ge=0, le=100, description="What a repetition costs at least; 0: no DRY.")]
DryBase = Annotated[float, Field(ge=1, le=10, description="How the cost grows with each token of a repetition.")]
DryAllowedLength = Annotated[
    int, Field(ge=1, le=MAX_TOKENS, description="Tokens that may be repeated for nothing."), WHOLE
]
DryPenaltyLastN = Annotated[
    int, Field(ge=-1, le=MAX_TOKENS, description="Tokens that DRY looks at; 0: none, -1: the context."), WHOLE
]
DrySequenceBreakers = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=MAX_BREAKER_LENGTH)]],
    Field(max_length=MAX_BREAKERS, description="Repetitions are not counted across these."),
]
XtcProbability = Annotated[float, Field(ge=0, le=1, description="How often the likeliest tokens go; 0: never.")]
XtcThreshold = Annotated[
    float, Field(ge=0, le=1, description="Tokens from this probability on go, but the last of them.")
]
Mirostat = Annotated[int, Field(ge=0, le=2, description="Version 1 or 2; 0: off."), WHOLE]
MirostatTau = Annotated[float, Field(ge=0, le=100, description="The surprise aimed at, in bits.")]
MirostatEta = Annotated[float, Field(ge=0, le=1, description="How fast it is aimed at.")]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES, description="Texts to draw from the one prompt."), WHOLE]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE]
ContextLength = Annotated[
    int, Field(ge=1, le=MAX_TOKENS, description="Tokens of context asked for; without it the server's."), WHOLE
]


def bounded_text(text: str, limit_bytes: int) -> str:
    """The text; ValueError when it is too large in UTF-8."""
    if len(text.encode()) > limit_bytes:
        raise ValueError(f"at most {limit_bytes} bytes are taken")
    return text


GrammarText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_GRAMMAR_BYTES),
    AfterValidator(lambda text: bounded_text(text, MAX_GRAMMAR_BYTES)),
]

# "JSON mode" of OpenAI and Ollama: an object with whatever members.
JSON_OBJECT: dict[str, Any] = {"type": "object"}


def schema_grammar(schema: dict[str, Any]) -> Grammar:
    """A JSON schema as the worker gets it; properties keep their order, which is that of the text to come."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def bounded_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema; ValueError when it is too large."""
    bounded_text(schema_grammar(schema).source, MAX_SCHEMA_BYTES)
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(bounded_schema), Field(description="A JSON schema.")]


class Strict(BaseModel):
    """A request: no unknown field, no conversion, no number that is none."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Lenient(BaseModel):
    """A request in the words of others: unknown fields are ignored, as their servers do."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class Shape(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


Item = TypeVar("Item")


class Listing(Shape, Generic[Item]):
    """A list of things. Each kind of list is a class of its own: `Listing[JobShape]` is no name in OpenAPI."""

    object: Literal["list"] = "list"
    data: list[Item]


class ErrorObject(Shape):
    """What went wrong and what to do about it."""

    code: str = Field(description="Stable; the list is in docs/api.md.")
    message: str
    type: str
    param: str | None = Field(description="The field at fault, when there is one.")


class ErrorBody(Shape):
    """Every answer that is not a success."""

    error: ErrorObject
