"""Answers of the recommendation and of the frontier. pydantic, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.api.catalogue_shapes import ReferenceShape
from service.api.laboratory_shapes import CardShape, EstimateShape
from service.api.shapes import Shape
from service.domain.recommend import Hindrance, Reason


class MemoryShape(Shape):
    """What one request of the context takes, by what it is for."""

    total_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int


class LossShape(Shape):
    """Mean KL divergence to the source, in nats."""

    kld: float
    error: float | None = Field(description="Standard error, of a measured one.")
    basis: Literal["source", "measured", "reference"] = Field(
        description="Held to itself; measured on this model; or what published figures of a 7B model suggest."
    )


class PaceShape(Shape):
    """Generation, one request at a time."""

    tokens_per_second: float
    basis: Literal["measured", "estimated"] = Field(
        description="Measured on this machine, or from another level of this model by the sizes of both."
    )


class ConsideredShape(Shape):
    """A level that was looked at, and what speaks against it."""

    name: str
    quantization: str
    stored: bool = Field(description="False: it could be made.")
    size_bytes: int
    bits_per_weight: float
    memory: MemoryShape
    fits: bool
    largest_context: int = Field(description="What the memory has room for; 0: not even the weights.")
    loss: LossShape | None = Field(description="None: nothing is known.")
    speed: PaceShape | None = Field(description="None: no level of this model was measured on this machine.")
    hindrances: list[Hindrance]


class AdvisedShape(ConsideredShape):
    """A level with everything that is known of it. What was measured and what was published stay apart."""

    advice: str | None
    card: CardShape | None = Field(description="What was measured on it here.")
    reference: ReferenceShape | None
    make: dict[str, Any] | None = Field(description="Body for POST /v1/quantize that makes it; None: it is stored.")


class RecommendationShape(Shape):
    """The level of a model to run."""

    object: Literal["recommendation"] = "recommendation"
    model: str
    source: str = Field(description="Canonical name of the variant that losses are held to.")
    memory_bytes: int
    memory_asked: bool = Field(description="False: what this machine has for a model now.")
    context_length: int
    max_kld: float
    max_kld_asked: bool = Field(description="False: the bound that is assumed when nobody sets one.")
    min_speed: float | None
    reason: Reason
    why: str
    cost: str
    recommended: AdvisedShape | None = Field(description="None: nothing keeps to what was asked; `why` says more.")
    runner_up: AdvisedShape | None = Field(description="The best of what that one does not beat.")
    next_up: AdvisedShape | None = Field(description="The smallest that loses less, whatever it takes.")
    next_up_needs: str
    warnings: list[str]
    considered: list[ConsideredShape]


class FrontierPointShape(Shape):
    """One measured variant."""

    name: str
    label: str
    size_bytes: int
    bits_per_weight: float
    mean_kld: EstimateShape
    is_source: bool
    on_front: bool
    dominated_by: str | None = Field(description="The best of those that are no larger and lose no more.")


class FrontierShape(Shape):
    """Size against loss for the measured variants of a model, smallest first."""

    object: Literal["frontier"] = "frontier"
    model: str
    source: str | None = Field(description="What they were held to; None while nothing is measured.")
    dataset: str | None
    window: int | None
    chunks: int | None
    tokens: int | None
    data: list[FrontierPointShape]
    unmeasured: list[str] = Field(description="Variants without a figure that can be compared with the others.")
