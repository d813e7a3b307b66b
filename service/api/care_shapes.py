"""Shapes of the store's care: what is verified, pruned, pinned. pydantic, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.api.shapes import Level, Listing, Name, Shape, Strict

_YEAR_SECONDS = 365 * 86400


class VerifyBody(Strict):
    """What to read again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"models": ["gloss"], "repair": True}]})

    models: Annotated[list[Name], Field(max_length=1000)] = Field(
        default_factory=list, description="Models or variants; a model's name means all of its variants. None: all."
    )
    repair: bool = Field(False, description="Make or fetch again what is damaged.")


class PruneBody(Strict):
    """What may go. Without `dry_run` false nothing does."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"unused_days": 30, "levels": ["Q8_0"]}, {"dry_run": False}]}
    )

    dry_run: bool = Field(True, description="Only say what would go.")
    unused_days: Annotated[float, Field(ge=0, le=3650)] | None = Field(
        None, description="Variants too that no worker has held for so long, if they can be made again here."
    )
    levels: Annotated[list[Level], Field(max_length=64)] = Field(
        default_factory=list, description="Variants too of these levels, if they can be made again here."
    )
    models: Annotated[list[Name], Field(max_length=1000)] = Field(
        default_factory=list, description="Of these models alone; for variants only."
    )
    age_seconds: Annotated[float, Field(ge=60, le=_YEAR_SECONDS)] = Field(
        86400.0, description="Age from which unused blobs, transfers and quarantined files go."
    )


class LeavingShape(Shape):
    """One thing that goes, or would go."""

    kind: Literal["blob", "transfer", "quarantined", "variant"]
    name: str = Field(description="A variant's name, a digest, or the folder of a transfer.")
    size_bytes: int = Field(description="What the disk gets back.")
    reason: str


class PruneShape(Listing[LeavingShape]):
    """What goes, or would go."""

    dry_run: bool
    size_bytes: int = Field(description="What the disk gets back in all.")


class StoreShape(Shape):
    """The store as it is. All sizes are bytes."""

    object: Literal["store"] = "store"
    models: int
    variants: int
    pinned: int = Field(description="Pinned variants.")
    blobs: int = Field(description="Files in the store.")
    blob_bytes: int
    outside: int = Field(description="Blobs that are files elsewhere, adopted where they are.")
    outside_bytes: int
    transfers_bytes: int = Field(description="Uploads, downloads and jobs under way, and what they left to go on with.")
    quarantined: int = Field(description="Damaged files.")
    quarantined_bytes: int
    damaged: list[str] = Field(description="Variants that are not served because their bytes are wrong or gone.")
    taken_bytes: int = Field(description="What counts against the quota.")
    quota_bytes: int | None
    free_bytes: int = Field(description="What the disk has left.")
    reserve_bytes: int = Field(description="What of it stays free.")
    room_bytes: int = Field(description="What may still come in.")
    oldest_verified_at: str | None = Field(description="When the bytes that were read longest ago were read.")
