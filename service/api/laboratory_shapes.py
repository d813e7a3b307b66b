"""Answers of the laboratory: what was measured, how a mix was found, recipes, importance matrices, datasets.

Most are read from domain values by the names of their fields: `Shape.model_validate(value, from_attributes=True)`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from service.api.shapes import Listing, Shape

# --- cards -------------------------------------------------------------------------------------------------------


class EstimateShape(Shape):
    """A mean with its standard error."""

    value: float
    error: float


class DivergenceShape(Shape):
    """What was lost against the source, over the same tokens. KL divergences are in nats."""

    base_name: str = Field(description="The variant it was held to.")
    base_digest: str
    base_perplexity: EstimateShape
    log_perplexity_ratio: EstimateShape = Field(description="Natural logarithm of perplexity / base_perplexity.")
    mean_kld: EstimateShape
    median_kld: float
    p90_kld: float
    p99_kld: float
    p999_kld: float
    max_kld: float
    mean_dp: EstimateShape = Field(description="Change of the probability of the text's own token, -1 to 1.")
    rms_dp: EstimateShape
    same_top: EstimateShape = Field(description="Share of tokens with the same most likely token, 0 to 1.")


class TextFiguresShape(Shape):
    """One text, in windows, each scored over its second half: as llama-perplexity does."""

    dataset: str
    dataset_digest: str
    window: int
    chunks: int
    tokens: int = Field(description="Tokens that were scored.")
    perplexity: EstimateShape
    divergence: DivergenceShape | None = Field(description="None: the source itself, or none is stored.")


class SpeedShape(Shape):
    """On this machine, one sequence, an empty cache."""

    threads: int
    prompt_tokens: int
    prompt_tokens_per_second: float
    generation_tokens: int
    generation_tokens_per_second: float
    memory_bytes: int = Field(description="Most resident memory of the process.")


class TaskScoreShape(Shape):
    """How many answers of a task were exactly right, greedy."""

    task: str
    task_digest: str
    correct: int
    total: int


class CardShape(Shape):
    """Everything that was measured on one variant in one run."""

    machine: str
    llama_build: str
    seconds: float = Field(description="How long it took to measure.")
    text: TextFiguresShape | None
    speed: SpeedShape | None
    tasks: list[TaskScoreShape]
    created_at: str


# --- recipes and mixes -------------------------------------------------------------------------------------------


def _as_object(pairs: Any) -> Any:
    """Metadata overrides of a recipe as an object of keys and values."""
    return pairs if isinstance(pairs, dict) else {pair.key: pair.value for pair in pairs}


class TypeOverrideShape(Shape):
    """Tensors that a pattern finds, and the type they get."""

    pattern: str
    type: str


class RecipeShape(Shape):
    """How a variant was made from its source: enough to make it again. Its options go into `recipe` of a request."""

    quantization: str
    allow_requantize: bool
    pure: bool
    output_type: str | None
    token_embedding_type: str | None
    keep_output: bool
    overrides: list[TypeOverrideShape]
    metadata: Annotated[dict[str, bool | int | float | str], BeforeValidator(_as_object)]
    prune_layers: list[int]
    importance_matrix: str | None = Field(description="Digest of the one that was used.")


class TargetShape(Shape):
    """What a mix had to keep to."""

    size_bytes: int | None
    bits_per_weight: float | None
    max_kld: float | None
    min_speed: float | None


class SearchShape(Shape):
    """How a mix was found. What the search believed is no measurement: the card has that, on other text."""

    target: TargetShape
    size_bytes: int
    predicted_kld: float
    search_dataset: str
    measured_pairs: int = Field(description="Tensors at a type whose damage was measured.")
    estimated_pairs: int = Field(description="Those whose damage the guide estimated.")
    search_seconds: float
    guide: str
    types: Annotated[dict[str, int], BeforeValidator(dict)] = Field(description="Tensors by ggml type.")


# --- importance matrices -----------------------------------------------------------------------------------------


class TensorStatisticsShape(Shape):
    """Mean squared activations of the input columns of one tensor."""

    name: str
    columns: int
    experts: int
    experts_without_data: int
    total: float
    mean: float
    minimum: float
    maximum: float
    deviation: float
    active: float = Field(description="Share of columns above 0.00001.")
    entropy: float = Field(description="In bits.")
    z_share: float = Field(description="Share of columns more than a standard deviation above the mean.")
    cosine: float = Field(description="Similarity to the same tensor one block before; 0 without one.")


class ImportanceMatrixShape(Shape):
    """A stored importance matrix."""

    digest: str
    model: str
    size_bytes: int
    source: str | None = Field(description="Canonical name of the variant it was computed with, while it is stored.")
    source_digest: str | None
    datasets: list[str]
    dataset_digest: str | None
    chunks: int
    chunk_tokens: int
    tensors: int
    created_at: str


class ImportanceMatrixListing(Listing[ImportanceMatrixShape]):
    """Importance matrices."""


class ImportanceMatrixDetailShape(ImportanceMatrixShape):
    """One importance matrix with figures of each tensor."""

    statistics: list[TensorStatisticsShape]


# --- datasets ----------------------------------------------------------------------------------------------------


class DatasetShape(Shape):
    """A stored text or task."""

    name: str
    kind: Literal["text", "task"]
    digest: str
    size_bytes: int
    built_in: bool = Field(description="Comes with quantry and cannot be deleted.")
    created_at: str


class DatasetListing(Listing[DatasetShape]):
    """Datasets."""


class GoneShape(Shape):
    """What has been deleted."""

    id: str
    object: Literal["dataset", "importance_matrix"]
    deleted: Literal[True] = True
