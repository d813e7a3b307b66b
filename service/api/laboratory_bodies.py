"""Requests of the laboratory: quantize with all its options, calibrate, evaluate, rebuild. pydantic, and nothing else.

What a dataset's name or a recipe means here is not known yet: `laboratory_specs.py` looks that up.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from service.api.shapes import DIGEST_PATTERN, MAX_TOKENS, WHOLE, Level, Name, Strict
from service.domain.datasets import CALIBRATION, EVALUATION
from service.domain.patterns import MAX_PATTERN_CHARACTERS
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import MAX_LAYERS, MAX_METADATA, MAX_METADATA_BYTES, MAX_OVERRIDES, WRITABLE_TYPES
from service.domain.sizes import MAX_SIZE_BYTES, SIZE_PATTERN

DATASET_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$"
# In the order of the levels; NVFP4 is the base type of none of them.
TENSOR_TYPES = tuple(
    name
    for name in dict.fromkeys([*(level.base_type for level in QUANTIZATIONS.values()), *sorted(WRITABLE_TYPES)])
    if name in WRITABLE_TYPES
)
MAX_NAMES = 64
WEEK_SECONDS = 7 * 86400


def _tensor_type(text: str) -> str:
    if text.upper() not in TENSOR_TYPES or not text.isascii():
        raise ValueError(f"the types that can be written are {', '.join(TENSOR_TYPES)}")
    return text.upper()


TensorType = Annotated[
    str,
    AfterValidator(_tensor_type),
    Field(description="A ggml type, in any case.", json_schema_extra={"enum": list(TENSOR_TYPES)}),
]
DatasetName = Annotated[str, StringConstraints(pattern=DATASET_PATTERN), Field(description="Name of a stored dataset.")]
StoredDigest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Flavour = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}$"),
    Field(description="Goes into the tag in front of the level, so that different recipes lie side by side."),
]
Threads = Annotated[int, Field(ge=1, le=1024), WHOLE]
Window = Annotated[int, Field(ge=64, le=16384, description="Tokens that are read at once."), WHOLE]
Chunks = Annotated[int, Field(ge=1, le=1_000_000, description="Windows to read; null: the whole text."), WHOLE]
Context = Annotated[
    int, Field(ge=1, le=MAX_TOKENS, description="Tokens of context that a plan works out the memory for."), WHOLE
]
# Without limits here: a whole number out of its range would pass as another kind of number. `recipes.check` has them.
MetadataValue = bool | int | float | Annotated[str, StringConstraints(max_length=MAX_METADATA_BYTES)]
MetadataKey = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9_.-]{{1,{MAX_METADATA_BYTES}}}$")]


class TypeOverrideBody(Strict):
    """Tensors that a pattern finds, and the type they get."""

    pattern: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN_CHARACTERS)] = Field(
        description="A regular expression that is searched in the tensor's name; the first that matches counts."
    )
    type: TensorType


class RecipeBody(Strict):
    """Options of llama.cpp's quantizer, beside the level."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "token_embedding_type": "Q6_K",
                    "overrides": [{"pattern": "ffn_down", "type": "Q6_K"}],
                    "metadata": {"general.name": "gloss, my mix"},
                }
            ]
        }
    )

    pure: bool = Field(False, description="Every matrix gets the level's base type.")
    output_type: TensorType | None = Field(None, description="Type of output.weight.")
    token_embedding_type: TensorType | None = Field(None, description="Type of token_embd.weight.")
    keep_output: bool = Field(False, description="Leave output.weight as it is.")
    overrides: Annotated[list[TypeOverrideBody], Field(max_length=MAX_OVERRIDES)] = Field(default_factory=list)
    metadata: Annotated[
        dict[MetadataKey, MetadataValue],
        Field(
            max_length=MAX_METADATA,
            description="Metadata keys of the result set to these values.",
            json_schema_extra={"additionalProperties": False},
        ),
    ] = Field(default_factory=dict)
    prune_layers: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_LAYERS - 1), WHOLE]],
        Field(max_length=MAX_LAYERS, description="Blocks that are left out, counted from 0."),
    ] = Field(default_factory=list)


class CalibrateOptionsBody(Strict):
    """How an importance matrix is computed."""

    dataset: DatasetName = CALIBRATION
    window: Window = 512
    chunks: Chunks | None = None
    process_output: bool = Field(False, description="For output.weight as well.")


class EvaluateOptionsBody(Strict):
    """What to measure."""

    model_config = ConfigDict(
        json_schema_extra={
            # Something must be left to measure.
            "not": {
                "required": ["dataset", "speed"],
                "properties": {"dataset": {"type": "null"}, "speed": {"const": False}, "tasks": {"maxItems": 0}},
            }
        }
    )

    dataset: DatasetName | None = Field(
        EVALUATION, description="Text for perplexity and KL divergence; null: neither is measured."
    )
    window: Window = 512
    chunks: Chunks | None = None
    tasks: Annotated[list[DatasetName], Field(max_length=16)] = Field(
        default_factory=list, description="Tasks to score, greedy."
    )
    speed: bool = Field(True, description="Measure tokens per second and memory.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.dataset is None and not self.tasks and not self.speed:
            raise ValueError("There is nothing to measure; name a dataset or a task, or set speed.")
        return self


_TARGETS: dict[str, Any] = {
    "size": {"type": ["integer", "string"]},
    "bits_per_weight": {"type": "number"},
    "max_kld": {"type": "number"},
    "min_speed": {"type": "number"},
}


class TargetBody(Strict):
    """What a mix of tensor types must keep to: at least one of these. The loss is least within it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"size": "3.2GiB"}, {"bits_per_weight": 4.25}, {"max_kld": 0.02}],
            "anyOf": [{"required": [name], "properties": {name: kind}} for name, kind in _TARGETS.items()],
        }
    )

    size: (
        Annotated[int, Field(ge=1, le=MAX_SIZE_BYTES), WHOLE]
        | Annotated[str, StringConstraints(pattern=SIZE_PATTERN)]
        | None
    ) = Field(None, description="Bytes of the whole file, e.g. 3400000000 or 3.2GiB.")
    bits_per_weight: Annotated[float, Field(gt=0, le=64)] | None = Field(None, description="Of the whole file.")
    max_kld: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Mean KL divergence to the source, in nats; the file is as small as it can be."
    )
    min_speed: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="Tokens per second of generation on this machine."
    )

    @model_validator(mode="after")
    def _any(self) -> Self:
        if all(getattr(self, name) is None for name in _TARGETS):
            raise ValueError("Give at least one of size, bits_per_weight, max_kld and min_speed.")
        return self


_BOUNDS = ("max_kld", "max_perplexity_ratio", "min_same_top")


class UntilBody(Strict):
    """How far down the levels go: to the first that breaks one of these. At least one is given."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"max_kld": 0.05}, {"max_perplexity_ratio": 1.02, "min_same_top": 0.9, "keep": "all"}],
            "anyOf": [{"required": [name], "properties": {name: {"type": "number"}}} for name in _BOUNDS],
        }
    )

    max_kld: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Most mean KL divergence to the source, in nats."
    )
    max_perplexity_ratio: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="Largest ratio of the level's perplexity to the source's."
    )
    min_same_top: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Smallest share of tokens with the same most likely token."
    )
    keep: Literal["last", "all"] = Field(
        "last", description="What stays of the levels that the job makes: the last within the bound, or all of them."
    )

    @model_validator(mode="after")
    def _any(self) -> Self:
        if all(getattr(self, name) is None for name in _BOUNDS):
            raise ValueError("Give at least one of max_kld, max_perplexity_ratio and min_same_top.")
        return self


class SearchBody(Strict):
    """How a mix is searched."""

    dataset: DatasetName = Field(CALIBRATION, description="The text that damages are measured on.")
    window: Window = 512
    chunks: Chunks | None = None
    types: Annotated[
        list[TensorType],
        Field(max_length=len(TENSOR_TYPES), description="Types that may be used; none: the k-quants', IQ4_XS, Q8_0."),
    ] = Field(default_factory=list)
    guide: Literal["auto", "measured", "estimated"] = Field(
        "auto", description="Measure every tensor at every type, or some of them; auto: as max_seconds allows."
    )
    max_seconds: Annotated[float, Field(ge=1, le=WEEK_SECONDS)] = Field(3600.0, description="Longest search.")


class QuantizeBody(Strict):
    """Levels, or a mix within a budget, to make from a stored variant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "gloss:F16", "to": ["Q4_K_M", "Q8_0"]},
                {"model": "gloss", "to": ["Q3_K_M", "IQ2_S"], "imatrix": "auto", "evaluate": True},
                {"model": "gloss", "target": {"size": "3MiB"}, "imatrix": "auto", "evaluate": True},
                {"model": "gloss", "to": ["Q4_K_M"], "recipe": {"output_type": "Q8_0"}, "dry_run": True},
                {"model": "gloss", "until": {"max_kld": 0.05}},
            ],
            "oneOf": [
                {
                    "required": ["to"],
                    "properties": {"to": {"type": "array"}, "target": {"type": "null"}, "search": {"type": "null"}},
                },
                {
                    "required": ["target"],
                    "properties": {"target": {"type": "object"}, "to": {"type": "null"}, "until": {"type": "null"}},
                },
                {
                    "required": ["until"],
                    "properties": {
                        "until": {"type": "object"},
                        "to": {"type": "null"},
                        "target": {"type": "null"},
                        "search": {"type": "null"},
                    },
                },
            ],
            # A bound needs a text to measure on.
            "not": {
                "required": ["until", "evaluate"],
                "properties": {
                    "until": {"type": "object"},
                    "evaluate": {
                        "type": "object",
                        "required": ["dataset"],
                        "properties": {"dataset": {"type": "null"}},
                    },
                },
            },
        }
    )

    model: Name
    to: Annotated[list[Level], Field(min_length=1, max_length=MAX_NAMES)] | None = None
    target: TargetBody | None = Field(None, description="A budget: the best mix of tensor types is searched.")
    search: SearchBody | None = Field(None, description="How it is searched; only with target.")
    until: UntilBody | None = Field(
        None,
        description="Levels are made from the largest down to the first that breaks this, and the last good one is "
        "kept. Without to: those of Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q3_K_M and Q2_K that apply.",
    )
    recipe: RecipeBody | Name | None = Field(
        None, description="Options of the quantizer, or the name of a variant whose recipe is used again."
    )
    imatrix: Literal["auto"] | StoredDigest | CalibrateOptionsBody | None = Field(
        None, description="auto or an object: computed here unless it is stored; a digest: the stored one."
    )
    evaluate: bool | EvaluateOptionsBody = Field(False, description="Measure each level once it is made.")
    flavour: Flavour | None = None
    allow_requantize: bool = Field(False, description="Quantize a source that has already lost precision.")
    dry_run: bool = Field(False, description="Answer with the plan, and do nothing.")
    context: Context | None = None
    tensors: bool = Field(False, description="Name the type of every tensor in the plan.")
    threads: Threads | None = None

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.to is None and self.until is None) == (self.target is None):
            raise ValueError("Send to, until or both; or send target alone.")
        if self.search is not None and self.target is None:
            raise ValueError("search goes with target; leave it out, or send a target instead of to.")
        if self.until is not None and isinstance(self.evaluate, EvaluateOptionsBody) and self.evaluate.dataset is None:
            raise ValueError("until needs a text to measure on; name one in evaluate.dataset, or leave that out.")
        return self


class CalibrateBody(Strict):
    """An importance matrix to compute, to bring in, or to merge."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss"}, {"model": "gloss", "dataset": None, "include": ["sha256:" + "0" * 64]}],
            "anyOf": [
                {"properties": {"dataset": {"type": "string"}}},
                {"required": ["include"], "properties": {"include": {"minItems": 1}}},
            ],
        }
    )

    model: Name
    dataset: DatasetName | None = Field(CALIBRATION, description="The text; null: only `include` is read.")
    window: Window = 512
    chunks: Chunks | None = None
    process_output: bool = Field(False, description="For output.weight as well.")
    include: Annotated[
        list[StoredDigest],
        Field(max_length=MAX_NAMES, description="Digests of importance matrices or uploaded files to merge."),
    ] = Field(default_factory=list)
    threads: Threads | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.dataset is None and not self.include:
            raise ValueError("Name a dataset to compute on, or digests to include.")
        return self


class EvaluateBody(EvaluateOptionsBody):
    """Variants of one model to measure."""

    model_config = ConfigDict(
        json_schema_extra={
            **EvaluateOptionsBody.model_config["json_schema_extra"],  # type: ignore[dict-item]
            "examples": [{"model": "gloss"}, {"model": ["gloss:Q4_K_M", "gloss:Q8_0"], "tasks": ["words"]}],
        }
    )

    model: Name | Annotated[list[Name], Field(min_length=1, max_length=MAX_NAMES)] = Field(
        description="A variant, several of one model, or a bare name: all variants of the model."
    )
    base: Name | None = Field(None, description="What to hold them to; null: what they were made from.")
    threads: Threads | None = None


class RebuildBody(Strict):
    """How to make a variant again."""

    threads: Threads | None = None
