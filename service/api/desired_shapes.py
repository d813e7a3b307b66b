"""Shapes of `/v1/models/{model}/desired`. pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.laboratory_bodies import StoredDigest
from service.api.shapes import Level, Shape, Strict
from service.domain.desired import WishState

_MAX_LEVELS = 64


class DesiredBody(Strict):
    """What is wanted of a model."""

    levels: list[Level] = Field(min_length=1, max_length=_MAX_LEVELS, description="Levels, aliases too.")
    importance_matrix: Literal["auto"] | StoredDigest | None = Field(
        None, description="A stored one by its digest, or `auto`: computed where none is there."
    )
    allow_requantize: bool = Field(
        default=False, description="Make levels also of a source that has lost precision already."
    )


class DesiredLevelShape(Shape):
    """One level that is wanted, and where it stands."""

    quantization: str
    state: WishState
    name: str = Field(description="Canonical name of the variant, made or to be made.")
    job: str | None = Field(description="The job that makes it, or did not.")
    reason: str | None = Field(description="Why it is not there.")


class DesiredShape(Shape):
    """What is wanted of a model and how far that has come."""

    model: str
    levels: list[DesiredLevelShape]
    importance_matrix: str | None
    allow_requantize: bool
    left: int = Field(description="Levels that are not stored, or damaged.")
    updated_at: str = Field(description="When it was last asked for.")
