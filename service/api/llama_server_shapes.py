"""llama-server's request bodies and answers, as far as quantry carries them out. pydantic, and nothing else.

Unknown fields are ignored, as llama-server does; those that would change the text and cannot be carried out are read
in order to be refused by name. -1 stands for "as much as there is" where it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from service.api.adapter_shapes import Scale
from service.api.shapes import (
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_TOKENS,
    WHOLE,
    Choices,
    ContextLength,
    DryAllowedLength,
    DryBase,
    DryMultiplier,
    DryPenaltyLastN,
    DrySequenceBreakers,
    JsonSchema,
    Lenient,
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
    Temperature,
    TokenId,
    TopK,
    TopP,
    TypicalP,
    XtcProbability,
    XtcThreshold,
)
from service.domain.adapters import MAX_ADAPTERS

MAX_TOKEN_ID = (1 << 31) - 1
MAX_DOCUMENTS = 2048
MAX_FILES = 256

Id = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE]
Ids = Annotated[list[Id], Field(fail_fast=True)]
Mixed = Annotated[list[str | Id], Field(fail_fast=True, description="Texts and token ids, one after another.")]


def _documented(example: dict[str, Any], *rules: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """What the document adds to a body: an example, null for everything that may be left out, and further rules."""

    def add(schema: dict[str, Any]) -> None:
        schema["examples"] = [example]
        if rules:
            schema["anyOf"] = list(rules)
        for name, field in schema["properties"].items():
            if name not in schema.get("required", ()) and _NULL not in field.get("anyOf", ()):
                about = {key: field.pop(key) for key in ("default", "description", "title") if key in field}
                schema["properties"][name] = {"anyOf": [dict(field), _NULL], **about}

    return add


def _offered(schema: dict[str, Any]) -> WithJsonSchema:
    """What the document says of a field that is read in order to be refused: these values ask for nothing."""
    return WithJsonSchema({**schema, "description": "Known; other values are not carried out."})


_NULL: dict[str, Any] = {"type": "null"}
_NOTHING: dict[str, Any] = {"type": "array", "maxItems": 0}
# Bodies name one of the two.
_GRAMMARS: tuple[dict[str, Any], ...] = (
    {"properties": {"json_schema": _NULL}},
    {"properties": {"grammar": {"anyOf": [_NULL, {"const": ""}]}}},
)


class Body(Lenient):
    """A request. As with llama-server, null is the same as nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: field for key, field in value.items() if field is not None} if isinstance(value, dict) else value


def _pair(pair: list[Any]) -> list[Any]:
    # JSON Schema calls 40.0 an integer.
    if len(pair) != 2 or isinstance(pair[0], bool) or pair[0] != int(pair[0]) or not 0 <= pair[0] <= MAX_TOKEN_ID:
        raise ValueError("a token id and its bias are taken")
    return pair


# A pair; the first of them is the id. Texts in its place are refused.
Bias = Annotated[
    list[float | int | Literal[False]],
    AfterValidator(_pair),
    WithJsonSchema(
        {
            "type": "array",
            "prefixItems": [
                {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
                {"anyOf": [{"type": "number"}, {"const": False}]},
            ],
            "items": False,
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]


class TokenizeBody(Body):
    """`POST /tokenize`."""

    model_config = ConfigDict(json_schema_extra=_documented({"content": "The word", "with_pieces": True}))

    model: Name | None = None
    content: str | Mixed = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model_config = ConfigDict(json_schema_extra=_documented({"tokens": [1, 2, 3]}))

    model: Name | None = None
    tokens: Ids = Field(default_factory=list)


class LoraBody(Body):
    """How much of a LoRA adapter, by its number in `GET /lora-adapters`."""

    id: Id
    scale: Scale


class SampledBody(Body):
    """Fields of both routes that generate."""

    model: Name | None = None
    n_predict: Annotated[
        int, Field(ge=-2, le=MAX_TOKENS, description="-1 and -2: until the context is full; 0: none."), WHOLE
    ] = -1
    stream: bool = False
    temperature: Temperature = 0.8
    top_k: Annotated[TopK, Field(ge=-1)] = 40
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
    dry_penalty_last_n: DryPenaltyLastN = 64
    dry_sequence_breakers: DrySequenceBreakers | None = None
    xtc_probability: XtcProbability = 0.0
    xtc_threshold: XtcThreshold = 0.1
    mirostat: Mirostat = 0
    mirostat_tau: MirostatTau = 5.0
    mirostat_eta: MirostatEta = 0.1
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED, description="-1 draws a fresh one."), WHOLE] = -1
    ignore_eos: bool = False
    stop: Stop | Stops = Field(default_factory=list)
    logit_bias: (
        Annotated[list[Bias], Field(max_length=MAX_BIASES)]
        | Annotated[
            dict[TokenId, float | Literal[False]],
            Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
        ]
    ) = Field(default_factory=list)
    n_probs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] = 0
    grammar: Annotated[str, StringConstraints(max_length=16 << 10)] = ""
    json_schema: JsonSchema | None = None
    samplers: Annotated[list[str], Field(max_length=32)] | None = None
    cache_prompt: bool = True
    response_fields: Annotated[list[str], Field(max_length=256)] = Field(default_factory=list)
    context_length: ContextLength | None = None
    lora: Annotated[list[LoraBody], Field(max_length=MAX_ADAPTERS)] = Field(default_factory=list)
    # Known, and refused where they ask for something.
    n_cmpl: Annotated[Choices, _offered({"type": "integer", "enum": [1]})] = 1
    return_tokens: Annotated[bool, _offered({"const": False})] = False
    post_sampling_probs: Annotated[bool, _offered({"const": False})] = False
    dynatemp_range: Annotated[float, Field(ge=0), _offered({"enum": [0]})] = 0.0
    image_data: Annotated[list[Any], _offered(_NOTHING)] = Field(default_factory=list)


class LlamaServerCompletionBody(SampledBody):
    """`POST /completion`."""

    model_config = ConfigDict(
        json_schema_extra=_documented({"model": "gloss:Q4_K_M", "prompt": "The word", "n_predict": 16}, *_GRAMMARS)
    )

    prompt: str | Mixed


class FileBody(Body):
    """Another file of the project."""

    text: str
    filename: str = "tmp"


class InfillBody(SampledBody):
    """`POST /infill`."""

    model_config = ConfigDict(
        json_schema_extra=_documented(
            {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n", "n_predict": 16}, *_GRAMMARS
        )
    )

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[FileBody], Field(max_length=MAX_FILES)] = Field(default_factory=list)
    prompt: str = ""


class RerankBody(Body):
    """`POST /v1/rerank`. `texts` in the place of `documents` asks for the shape of text-embeddings-inference."""

    model_config = ConfigDict(
        json_schema_extra=_documented(
            {"query": "What is a panda?", "documents": ["hi", "The panda is a bear."]},
            {"properties": {"texts": _NULL, "documents": {"type": "array"}}, "required": ["documents"]},
            {"properties": {"documents": _NULL, "texts": {"type": "array"}}, "required": ["texts"]},
        )
    )

    model: Name | None = None
    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, Field(ge=1, le=MAX_DOCUMENTS), WHOLE] | None = None
    return_text: bool = False


class LlamaServerErrorObject(Shape):
    """What went wrong; `reason` is quantry's stable code."""

    code: int = Field(description="The status.")
    message: str
    type: str
    param: str | None
    reason: str


class LlamaServerError(Shape):
    """Every answer that is not a success."""

    error: LlamaServerErrorObject


class TokenPieceShape(Shape):
    """A token with its text, or with its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class TokensShape(Shape):
    """Token ids, or with `with_pieces` their texts too."""

    tokens: list[int | TokenPieceShape]


class ContentShape(Shape):
    """A text."""

    content: str


class PromptShape(Shape):
    """A prompt as text."""

    prompt: str


class InputTokensShape(Shape):
    """How long a prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompletedShape(Shape):
    """What `/completion` and `/infill` answer; a stream ends with it, its `content` and `tokens` empty."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: dict[str, Any]
    prompt: str
    has_new_line: bool
    truncated: bool
    stop_type: Literal["none", "eos", "limit", "word"]
    stopping_word: str
    tokens_cached: int
    timings: dict[str, Any]


class SlotShape(Shape):
    """One of the sequences that a loaded variant computes side by side."""

    id: int
    n_ctx: int
    speculative: bool
    is_processing: bool


class LoraAdapterShape(Shape):
    """A LoRA adapter of the model. `path` is its name: where files lie is nobody's business."""

    id: int
    path: str
    scale: float
    task_name: str = ""
    prompt_prefix: str = ""


class AppliedShape(Shape):
    """What was asked for holds."""

    success: Literal[True] = True


class RankShape(Shape):
    """How well one document fits the query."""

    index: int
    relevance_score: float


class RankedShape(Shape):
    """The same in the words of text-embeddings-inference; `text` with `return_text`."""

    index: int
    score: float
    text: str | None = None


class RanksShape(Shape):
    """Documents, the best first."""

    model: str
    object: Literal["list"]
    usage: dict[str, int]
    results: list[RankShape]
