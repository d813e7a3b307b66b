"""Importance matrices as the catalogue knows them: what they were computed from, and statistics of each tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Mean squared activations of one tensor's input columns, as llama-imatrix --show-statistics has them.

    `active` is the share of columns above 1e-5, `entropy` in bits, `z_share` the share of columns more than a
    standard deviation above the mean, `cosine` the similarity to the same tensor one block before (0 without one).
    """

    name: str
    columns: int  # of all experts together
    experts: int
    experts_without_data: int
    total: float
    mean: float
    minimum: float
    maximum: float
    deviation: float
    active: float
    entropy: float
    z_share: float
    cosine: float


@dataclass(frozen=True, slots=True)
class ImportanceFacts:
    """What an importance matrix is. `chunks` of `chunk_tokens` tokens each were seen."""

    chunks: int
    chunk_tokens: int
    datasets: tuple[str, ...]
    statistics: tuple[TensorStatistics, ...]


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """A stored importance matrix. `model` is the display name of the model it belongs to.

    `source_digest` is the variant it was computed with, None for one that was imported or merged; `dataset_digest` the
    text, likewise.
    """

    digest: str
    size_bytes: int
    model: str
    source_digest: str | None
    dataset_digest: str | None
    facts: ImportanceFacts
    created_at: str
